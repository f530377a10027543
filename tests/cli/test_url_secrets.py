"""A user and password inside a URL: refused or left out, on every way out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import yaml

from servers.scripted_http import Answer, Request, ScriptedServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

#: A dead port of this machine: whatever is asked there says where it asked.
DEAD = "127.0.0.1:9"
CANARY = "canary"
#: The last ones: what urlsplit takes for a path, and no ``@`` in the right place.
USER_INFO = ["user:canary", "canary", ":canary", "user:can/canary", "user:x@canary", "u:canary %"]
AUTH = {
    "auth_url": f"http://{DEAD}/v3",
    "username": "mia",
    "password": "sesame",
    "project_name": "demo",
    "user_domain_id": "default",
    "project_domain_id": "default",
}
VARIABLES = {f"OS_{key.upper()}": value for key, value in AUTH.items()}
HOSTS = "aggregates: {edge: {hosts: [{name: here, transport: local}]}}\n"


class Run:
    """Runs imgcache in a child process and looks at all that it lets out."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "run.log"

    def __call__(
        self,
        *words: str,
        variables: dict[str, str] | None = None,
        service: str = "{kind: glance}",
        hosts: str = HOSTS,
        clouds: dict[str, object] | None = None,
    ) -> str:
        """Return all output, after a look for the canary."""
        inventory = self.folder / "inventory.yaml"
        inventory.write_text(f"image_service: {service}\n{hosts}")
        if clouds:
            path = self.folder / ".config" / "openstack" / "clouds.yaml"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(yaml.safe_dump({"clouds": clouds}))
            path.chmod(0o600)
        command = [sys.executable, "-m", "imgcache", "--inventory", str(inventory), *words]
        command += [
            *("precache", "-a", "edge", "name", "-vv", "-f", "json", "--retries", "0"),
            *("--log-file", str(self.log)),
        ]
        environ = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("XDG_", "COVERAGE"))
        }
        done = subprocess.run(
            command,
            env={**environ, "HOME": str(self.folder), **(variables or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        log = self.log.read_text() if self.log.exists() else ""
        for name, text in (("stdout", done.stdout), ("stderr", done.stderr), ("log", log)):
            assert CANARY not in text, f"{name}: {text}"
        assert done.returncode in {2, 4}, done.stderr
        assert json.loads(done.stderr.splitlines()[-1])["error"]["message"]
        return done.stdout + done.stderr


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


@pytest.mark.parametrize("user_info", USER_INFO)
def test_auth_url_in_the_environment(run: Run, user_info: str) -> None:
    variables = {**VARIABLES, "OS_AUTH_URL": f"http://{user_info}@{DEAD}/v3"}
    assert "auth_url: holds a user or password" in run(variables=variables)


@pytest.mark.parametrize("user_info", USER_INFO[:2])
def test_auth_url_without_a_scheme(run: Run, user_info: str) -> None:
    variables = {**VARIABLES, "OS_AUTH_URL": f"{user_info}@{DEAD}/v3"}
    assert "holds a user or password" in run(variables=variables)


def test_auth_url_as_an_option(run: Run) -> None:
    said = run("--os-auth-url", f"http://u:{CANARY}@{DEAD}/v3", variables=VARIABLES)
    assert "holds a user or password" in said


@pytest.mark.parametrize(
    ("entry", "key"),
    [
        ({"auth": {**AUTH, "auth_url": f"http://u:{CANARY}@{DEAD}/v3"}}, "edge.auth.auth_url"),
        ({"auth": AUTH, "image_endpoint_override": f"http://u:{CANARY}@{DEAD}"}, "override"),
        ({"auth": AUTH, "image_endpoint": f"http://u:{CANARY}@{DEAD}"}, "edge.image_endpoint"),
        ({"auth": AUTH, "profile": f"http://u:{CANARY}@{DEAD}/"}, "edge.profile"),
        (
            {"auth_type": "none", "auth": {"endpoint": f"http://u:{CANARY}@{DEAD}"}},
            "edge.auth.endpoint",
        ),
        (
            {
                "auth_type": "v3oidcpassword",
                "auth": {
                    **AUTH,
                    "identity_provider": "x",
                    "protocol": "openid",
                    "client_id": "me",
                    "client_secret": "s",
                    "discovery_endpoint": f"http://u:{CANARY}@{DEAD}",
                },
            },
            "edge.auth.discovery_endpoint",
        ),
    ],
)
def test_a_url_in_clouds_yaml(run: Run, entry: dict[str, object], key: str) -> None:
    said = run(service="{cloud: edge}", clouds={"edge": entry})
    assert "user or password" in said
    assert "clouds.yaml:" in said
    assert key in said


@pytest.mark.parametrize(
    "service",
    [
        f"{{endpoint: 'http://u:{CANARY}@{DEAD}'}}",
        f"{{endpoint: 'http://{DEAD}', host_endpoint: 'http://u:{CANARY}@{DEAD}'}}",
        f"{{endpoint: 'http://u:can/{CANARY}@{DEAD}'}}",
    ],
)
def test_an_endpoint_in_the_inventory(run: Run, service: str) -> None:
    assert "inventory.yaml:" in run(service=service)


def test_an_endpoint_override_as_an_option(run: Run) -> None:
    option = ("--os-image-endpoint-override", f"http://u:{CANARY}@{DEAD}")
    assert "holds a user or password" in run(*option, variables=VARIABLES)


def test_a_node_in_the_inventory(run: Run) -> None:
    hosts = (
        "aggregates: {edge: {driver: glance-cache, hosts: [{name: here, "
        f"endpoint: 'http://u:{CANARY}@{DEAD}'}}]}}}}\n"
    )
    run(hosts=hosts, variables=VARIABLES)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_does_not_answer(run: Run, scheme: str) -> None:
    proxies = dict.fromkeys(("http_proxy", "https_proxy"), f"http://u:{CANARY}@{DEAD}")
    run(variables={**VARIABLES, **proxies, "OS_AUTH_URL": f"{scheme}://{DEAD}/v3"})


def test_a_proxy_that_is_no_url(run: Run) -> None:
    run(
        variables={
            **VARIABLES,
            "https_proxy": f"http://u:{CANARY}@[::bad",
            "OS_AUTH_URL": f"https://{DEAD}/v3",
        }
    )


# ------------------------------------------------------------------------- what Keystone and Glance say


@pytest.fixture
def keystone() -> Iterator[Callable[[Callable[[Request, str], Answer | None]], str]]:
    """Starts a Keystone whose first answers a test gives."""
    servers: list[ScriptedServer] = []

    def start(answer: Callable[[Request, str], Answer | None]) -> str:
        server = ScriptedServer(lambda request: answer(request, server.url) or Answer(404))
        servers.append(server.__enter__())
        return server.url

    yield start
    for server in servers:
        server.__exit__()


def as_json(content: object, status: int = 200, **headers: str) -> Answer:
    return Answer(
        status, json.dumps(content).encode(), {"Content-Type": "application/json", **headers}
    )


def token(image_url: str) -> Answer:
    """Return Keystone's answer to a login."""
    endpoint = {"id": "1", "interface": "public", "region": "R", "region_id": "R", "url": image_url}
    user = {"id": "u", "name": "mia", "domain": {"id": "default", "name": "Default"}}
    body = {
        "methods": ["password"],
        "user": user,
        "project": {**user, "id": "p"},
        "issued_at": "2026-01-01T00:00:00.000000Z",
        "expires_at": "2099-01-01T00:00:00.000000Z",
        "catalog": [{"id": "i", "type": "image", "name": "glance", "endpoints": [endpoint]}],
    }
    return as_json({"token": body}, 201, **{"X-Subject-Token": "sesame-token"})


@pytest.mark.parametrize(
    "url",
    [
        f"http://u:{CANARY}@{DEAD}/",
        f"ftp://u:{CANARY}@{DEAD}/",
        f"u:{CANARY}@{DEAD}",
        f"http://u:can/{CANARY}@{DEAD}/",
        f"http://u:{CANARY}@[::bad/",
    ],
)
def test_glance_in_the_catalogue(run: Run, keystone: Callable[..., str], url: str) -> None:
    at = keystone(lambda request, _: token(url) if request.method == "POST" else None)
    said = run(variables={**VARIABLES, "OS_AUTH_URL": f"{at}/v3"})
    assert "the image service's endpoint" in said


def test_a_catalogue_with_no_url_at_all(run: Run, keystone: Callable[..., str]) -> None:
    at = keystone(lambda request, _: token("http://[::bad/") if request.method == "POST" else None)
    assert "no http or https URL" in run(variables={**VARIABLES, "OS_AUTH_URL": f"{at}/v3"})


def test_where_keystone_says_that_it_is(run: Run, keystone: Callable[..., str]) -> None:
    link = [{"rel": "self", "href": f"http://u:{CANARY}@{DEAD}/v3/"}]
    version = {"id": "v3.14", "status": "stable", "links": link, "media-types": []}
    versions = as_json({"versions": {"values": [version]}}, 300)
    at = keystone(lambda request, _: versions if request.path == "/" else None)
    run(variables={**VARIABLES, "OS_AUTH_URL": at})


@pytest.mark.parametrize("part", ["keystone", "glance"])
def test_where_a_redirect_leads(run: Run, keystone: Callable[..., str], part: str) -> None:
    away = Answer(302, b"", {"Location": f"http://u:{CANARY}@{DEAD}/"})

    def answer(request: Request, url: str) -> Answer:
        return token(url) if request.method == "POST" and part == "glance" else away

    at = keystone(answer)
    assert "<secret>@" in run(variables={**VARIABLES, "OS_AUTH_URL": f"{at}/v3"})


@pytest.mark.parametrize("part", ["keystone", "glance"])
def test_what_an_error_repeats(run: Run, keystone: Callable[..., str], part: str) -> None:
    said = f"cannot reach amqp://u:{CANARY}@{DEAD}/"
    bad = as_json({"error": {"message": said, "code": 400, "title": "Bad"}}, 400)

    def answer(request: Request, url: str) -> Answer:
        return token(url) if request.method == "POST" and part == "glance" else bad

    at = keystone(answer)
    run(variables={**VARIABLES, "OS_AUTH_URL": f"{at}/v3"})
