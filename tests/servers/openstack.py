"""A real Keystone and a real Glance on loopback, from a virtual environment of their own.

    template = prepare_template(folder)          once: databases, keys, the bootstrapped admin
    with KeystoneAndGlance.start(template, folder) as cloud: ...
    with start_open_glance(template, folder) as glance: ...     Glance without Keystone

The environment is found by ``IMGCACHE_OPENSTACK_VENV``, else ``.venv-openstack`` beside ``tests``; it
holds ``glance``, ``keystone``, ``pyuwsgi`` and ``gunicorn``. Servers get an environment of their own (no
``OS_*`` of the caller), log into their folder, are ended by their pid, and end by themselves when
whoever started them dies.
"""

from __future__ import annotations

import contextlib
import ctypes
import grp
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import requests

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

READY_TIMEOUT_S = 60.0
#: Read on import: the tests' own environment holds no variable of ours.
_NAMED_VENV = os.environ.get("IMGCACHE_OPENSTACK_VENV")
ADMIN_PASSWORD = "admin-canary-0b6e9d"
_PR_SET_PDEATHSIG = 1


def find_venv() -> Path | None:
    """Return the environment that holds Glance and Keystone, or None."""
    venv = (
        Path(_NAMED_VENV)
        if _NAMED_VENV
        else Path(__file__).resolve().parents[2] / ".venv-openstack"
    )
    packages = list(venv.glob("lib/python3*/site-packages/glance/wsgi"))
    return venv if packages and (venv / "bin" / "uwsgi").exists() else None


def free_port() -> int:
    """Return a loopback port that was free a moment ago."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    return {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "HOME": "/nonexistent",
        "LC_ALL": "C.UTF-8",
        "PYTHONWARNINGS": "ignore",
        **(extra or {}),
    }


class Server:
    """One server process, leader of a group of its own with its workers."""

    def __init__(
        self, argv: Sequence[str], env: Mapping[str, str], log: Path, ready_url: str
    ) -> None:
        self.log = log
        with log.open("ab") as out:
            self.process = subprocess.Popen(
                list(argv),
                env=_environment(env),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_die_with_parent,  # noqa: PLW1509 - one C call, before any thread of ours
            )
        self._ready_url = ready_url

    def wait_ready(self) -> None:
        """Wait until it answers; raises with the end of its log when it never does."""
        deadline = time.monotonic() + READY_TIMEOUT_S
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            with contextlib.suppress(requests.RequestException):
                if _plain().get(self._ready_url, timeout=5).status_code < 400:
                    return
            time.sleep(0.05)
        tail = self.log.read_text(errors="replace")[-3000:]
        self.stop()
        message = f"{self._ready_url} never answered:\n{tail}"
        raise RuntimeError(message)

    def stop(self) -> None:
        """End it with its workers, at once: nothing of its state is needed again. Idempotent."""
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)


def _plain() -> requests.Session:
    session = requests.Session()
    session.trust_env = False
    return session


# ---------------------------------------------------------------------------------------------- state

_PREPARE_KEYSTONE = """
import sys
from keystone.cmd import cli
conf, user, group, password, url = sys.argv[1:]
owner = ["--keystone-user", user, "--keystone-group", group]
for words in (
    ["db_sync"],
    ["fernet_setup", *owner],
    ["credential_setup", *owner],
    ["bootstrap", "--bootstrap-password", password, "--bootstrap-public-url", url,
     "--bootstrap-internal-url", url, "--bootstrap-admin-url", url, "--bootstrap-region-id", "RegionOne"],
):
    cli.CONF.reset()
    cli.main(["keystone-manage", "--config-file", conf, *words])
"""


def _keystone_conf(state: Path, token_lifetime_s: int = 3600) -> str:
    return f"""
[database]
connection = sqlite:///{state}/keystone.sqlite
[fernet_tokens]
key_repository = {state}/fernet
[credential]
key_repository = {state}/credential
[token]
expiration = {token_lifetime_s}
[cache]
# in the one process there is; without it each request costs a quarter of a second of processor time
enabled = true
backend = oslo_cache.dict
[identity]
# the least that bcrypt takes: tests make many tokens
password_hash_rounds = 4
"""


def _run(venv: Path, argv: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as out:
        return subprocess.Popen(
            [str(venv / "bin" / "python"), *argv],
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
        )


def prepare_template(folder: Path) -> Path:
    """Make databases and keys in ``folder``; takes about 4 s, once per test session."""
    venv = find_venv()
    assert venv is not None
    keystone, glance = folder / "keystone", folder / "glance"
    for path in (keystone / "fernet", keystone / "credential", glance):
        path.mkdir(parents=True)
    (keystone / "keystone.conf").write_text(_keystone_conf(keystone))
    (glance / "glance-api.conf").write_text(
        f"[database]\nconnection = sqlite:///{glance}/glance.sqlite\n"
    )
    user, group = pwd.getpwuid(os.getuid()).pw_name, grp.getgrgid(os.getgid()).gr_name
    # the URL is written again when Keystone has its port
    words = [
        str(keystone / "keystone.conf"),
        user,
        group,
        ADMIN_PASSWORD,
        "http://127.0.0.1:5000/v3",
    ]
    steps = [
        _run(venv, ["-c", _PREPARE_KEYSTONE, *words], folder / "keystone.log"),
        _run(
            venv,
            [
                str(venv / "bin" / "glance-manage"),
                "--config-file",
                str(glance / "glance-api.conf"),
                "db_sync",
            ],
            folder / "glance.log",
        ),
    ]
    for step, log in zip(steps, ("keystone.log", "glance.log"), strict=True):
        if step.wait(120):
            raise RuntimeError((folder / log).read_text(errors="replace")[-3000:])
    return folder


# --------------------------------------------------------------------------------------------- glance


@dataclass(frozen=True)
class GlanceOptions:
    """How a Glance is set up; each differs from the others in what clients see."""

    wsgi: str = "uwsgi"
    """``uwsgi`` or ``gunicorn``."""
    cache: bool = False
    """With the cache middleware and its management."""
    service_type: bool = True
    """False: tokens of application credentials with access rules are refused."""
    prefix: str = ""
    """A path it is mounted below, as in ``/image``; uWSGI only."""
    page_size: int = 25
    web_port: int = 80
    """The loopback port at which images of the http store may be."""
    policy: Mapping[str, str] = field(default_factory=dict)
    address: str = "127.0.0.1"
    """What it listens on; another than loopback only in a network namespace of the caller's."""


def _glance_conf(
    state: Path, own: Path, url: str, options: GlanceOptions, keystone: str | None
) -> str:
    venv = find_venv()
    assert venv is not None
    flavor = "+".join(
        word
        for word in ("keystone" if keystone else "", "cachemanagement" if options.cache else "")
        if word
    )
    text = f"""
[DEFAULT]
enabled_backends = fs:file, web:http
# list options of this kind want the brackets; without them POST /v2/images answers 500
enabled_import_methods = []
worker_self_reference_url = {url}
limit_param_default = {options.page_size}
show_multiple_locations = true
image_cache_dir = {own}/cache
[glance_store]
default_backend = fs
[fs]
filesystem_store_datadir = {state}/store
[web]
[os_glance_staging_store]
filesystem_store_datadir = {state}/staging
[os_glance_tasks_store]
filesystem_store_datadir = {state}/tasks
[import_filtering_opts]
allowed_hosts = [127.0.0.1]
allowed_ports = [{options.web_port}]
[database]
connection = sqlite:///{state}/glance.sqlite
[oslo_concurrency]
lock_path = {own}/lock
[paste_deploy]
{f"flavor = {flavor}" if flavor else ""}
config_file = {venv}/etc/glance/glance-api-paste.ini
[oslo_policy]
policy_file = {own}/policy.yaml
"""
    if keystone:
        text += f"""
[keystone_authtoken]
www_authenticate_uri = {keystone}
auth_url = {keystone}
auth_type = password
username = glance
password = glance-service
project_name = service
user_domain_id = default
project_domain_id = default
{"service_type = image" if options.service_type else ""}
"""
    return text


def _wsgi_argv(venv: Path, options: GlanceOptions, port: int, module: str) -> list[str]:
    address = f"{options.address}:{port}"
    if options.wsgi == "gunicorn":
        return [
            str(venv / "bin" / "gunicorn"),
            "-k",
            "gthread",
            "--threads",
            "8",
            "-b",
            address,
            module,
        ]
    argv = [str(venv / "bin" / "uwsgi"), "--http-socket", address, "--master", "--processes", "1"]
    argv += [
        "--threads",
        "8",
        "--enable-threads",
        "--lazy-apps",
        "--die-on-term",
        "--need-app",
        "--no-orphans",
    ]
    # As in Glance's own sample: uWSGI keeps no connection, and must say so, or clients run into resets.
    argv += ["--add-header", "Connection: close"]
    argv += ["--buffer-size", "65535", "--chunked-input-limit", "8388608"]
    if options.prefix:
        return [*argv, "--mount", f"{options.prefix}={module}", "--manage-script-name"]
    return [*argv, "--module", module]


class Glance:
    """A running Glance: its URL, its state folder, and the few API calls that tests need."""

    def __init__(
        self,
        state: Path,
        options: GlanceOptions | None = None,
        keystone: str | None = None,
        *,
        wait: bool = True,
    ) -> None:
        options = options or GlanceOptions()
        venv = find_venv()
        assert venv is not None
        port = free_port()
        self.state = state
        self.url = f"http://127.0.0.1:{port}{options.prefix}"
        self.own = state / f"server-{port}"
        for path in (self.own / "lock", self.own / "cache", state / "store"):
            path.mkdir(parents=True, exist_ok=True)
        conf = _glance_conf(state, self.own, self.url, options, keystone)
        (self.own / "glance-api.conf").write_text(conf)
        (self.own / "policy.yaml").write_text(json.dumps(dict(options.policy)))
        env = {"OS_GLANCE_CONFIG_DIR": str(self.own)}
        argv = _wsgi_argv(venv, options, port, "glance.wsgi.api:application")
        self.server = Server(argv, env, self.own / "log", self.url + "/healthcheck")
        if wait:
            self.server.wait_ready()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.server.stop()

    def call(
        self,
        method: str,
        path: str,
        *,
        token: str | None = None,
        expect: int | None = None,
        **kwargs: Any,
    ) -> requests.Response:
        """Make one request; ``expect`` is the status that it must have."""
        headers = {**({"X-Auth-Token": token} if token else {}), **kwargs.pop("headers", {})}
        with _plain() as session:
            answer = session.request(method, self.url + path, headers=headers, timeout=30, **kwargs)
        if expect is not None and answer.status_code != expect:
            message = f"{method} {path}: {answer.status_code}, not {expect}: {answer.text[:500]}"
            raise AssertionError(message)
        return answer

    def create(self, name: str, *, token: str | None = None, **fields: Any) -> str:
        """Make an image record without data; return its id."""
        body = {"name": name, "disk_format": "raw", "container_format": "bare", **fields}
        image_id: str = self.call("POST", "/v2/images", token=token, json=body, expect=201).json()[
            "id"
        ]
        return image_id

    def upload(self, name: str, data: bytes, *, token: str | None = None, **fields: Any) -> str:
        """Make an active image; return its id."""
        image_id = self.create(name, token=token, **fields)
        headers = {"Content-Type": "application/octet-stream"}
        self.call(
            "PUT",
            f"/v2/images/{image_id}/file",
            token=token,
            data=data,
            headers=headers,
            expect=204,
        )
        return image_id

    def register(self, name: str, url: str, *, token: str | None = None, **fields: Any) -> str:
        """Make an image whose data is at a URL: active, with neither checksum nor hash; return its id."""
        image_id = self.create(name, token=token, **fields)
        location = {"op": "add", "path": "/locations/-", "value": {"url": url, "metadata": {}}}
        self.patch(image_id, location, token=token)
        return image_id

    def patch(self, image_id: str, *changes: dict[str, Any], token: str | None = None) -> None:
        """Change a record by JSON patch operations."""
        headers = {"Content-Type": "application/openstack-images-v2.1-json-patch"}
        body = json.dumps(changes)
        self.call(
            "PATCH", f"/v2/images/{image_id}", token=token, data=body, headers=headers, expect=200
        )

    def stored(self, image_id: str) -> Path:
        """Return where the image's data is, for damage behind Glance's back."""
        return self.state / "store" / image_id


class Origin:
    """A web server for the http store, in a thread: path -> content."""

    def __init__(self) -> None:
        files: dict[str, bytes] = {}

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer(body=True)

            def do_HEAD(self) -> None:
                self._answer(body=False)

            def _answer(self, *, body: bool) -> None:
                content = files.get(self.path)
                self.send_response(200 if content is not None else 404)
                self.send_header("Content-Length", str(len(content or b"")))
                self.end_headers()
                if body:
                    self.wfile.write(content or b"")

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.files = files
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.05,), name="origin"
        )
        self._thread.start()

    def url(self, path: str, content: bytes) -> str:
        """Serve ``content`` at ``path``; return its URL."""
        self.files[path] = content
        return f"http://127.0.0.1:{self.port}{path}"

    def stop(self) -> None:
        """End it."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def copy_glance_state(template: Path, folder: Path) -> Path:
    """Return a fresh state folder for Glance servers."""
    folder.mkdir(parents=True)
    shutil.copy(template / "glance" / "glance.sqlite", folder)
    return folder


#: Without Keystone everything is refused unless a policy says otherwise (Glance 33).
OPEN_POLICY = {"context_is_admin": "@"}


# ------------------------------------------------------------------------------------------- keystone


@dataclass(frozen=True)
class User:
    """Somebody with a password and a role on a project."""

    name: str
    password: str
    project: str
    role: str


MEMBER = User("mia", "member-canary-51c7aa", "demo", "member")
READER = User("rea", "reader-canary-88e012", "demo", "reader")
OTHER = User("otto", "other-canary-1f93bd", "other", "member")
ADMIN = User("admin", ADMIN_PASSWORD, "admin", "admin")
_SERVICE = User("glance", "glance-service", "service", "service")


class Keystone:
    """A running Keystone."""

    def __init__(self, template: Path, state: Path) -> None:
        venv = find_venv()
        assert venv is not None
        shutil.copytree(template / "keystone", state)
        (state / "keystone.conf").write_text(_keystone_conf(state))
        port = free_port()
        self.url = f"http://127.0.0.1:{port}/v3"
        argv = _wsgi_argv(venv, GlanceOptions(), port, "keystone.wsgi.api:application")
        self.server = Server(argv, {"OS_KEYSTONE_CONFIG_DIR": str(state)}, state / "log", self.url)
        self.users: dict[str, str] = {}
        """User name -> id."""

    def call(self, method: str, path: str, *, token: str, **kwargs: Any) -> Any:
        """Make one request and return its JSON; raises unless it succeeds."""
        with _plain() as session:
            headers = {"X-Auth-Token": token}
            answer = session.request(method, self.url + path, headers=headers, timeout=30, **kwargs)
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def token(self, user: User) -> str:
        """Return a new token of the user's, scoped to the project."""
        person = {"name": user.name, "domain": {"id": "default"}, "password": user.password}
        body = {
            "auth": {
                "identity": {"methods": ["password"], "password": {"user": person}},
                "scope": {"project": {"name": user.project, "domain": {"id": "default"}}},
            }
        }
        with _plain() as session:
            answer = session.post(self.url + "/auth/tokens", json=body, timeout=30)
        answer.raise_for_status()
        token: str = answer.headers["X-Subject-Token"]
        return token

    def populate(self, users: Sequence[User]) -> str:
        """Make projects, users and grants; return an admin token."""
        admin = self.token(ADMIN)
        roles = {
            role["name"]: role["id"] for role in self.call("GET", "/roles", token=admin)["roles"]
        }
        projects: dict[str, str] = {}
        for user in users:
            if user.project not in projects:
                body: dict[str, Any] = {"project": {"name": user.project, "domain_id": "default"}}
                projects[user.project] = self.call("POST", "/projects", token=admin, json=body)[
                    "project"
                ]["id"]
            body = {"user": {"name": user.name, "password": user.password, "domain_id": "default"}}
            user_id = self.call("POST", "/users", token=admin, json=body)["user"]["id"]
            self.users[user.name] = user_id
            grant = f"/projects/{projects[user.project]}/users/{user_id}/roles/{roles[user.role]}"
            self.call("PUT", grant, token=admin)
        return admin

    def publish(self, service_type: str, urls: Mapping[str, str], *, token: str) -> None:
        """Put a service into the catalogue: interface -> URL."""
        body: dict[str, Any] = {"service": {"type": service_type, "name": service_type}}
        service = self.call("POST", "/services", token=token, json=body)["service"]["id"]
        for interface, url in urls.items():
            body = {
                "service_id": service,
                "interface": interface,
                "url": url,
                "region_id": "RegionOne",
            }
            self.call("POST", "/endpoints", token=token, json={"endpoint": body})

    def move_identity(self, *, token: str) -> None:
        """Write our own port into the catalogue, instead of the template's."""
        for endpoint in self.call("GET", "/endpoints", token=token)["endpoints"]:
            body = {"endpoint": {"url": self.url}}
            self.call("PATCH", f"/endpoints/{endpoint['id']}", token=token, json=body)


class KeystoneAndGlance:
    """A small cloud: Keystone, and Glance with it, with four users."""

    def __init__(self, template: Path, folder: Path) -> None:
        self.folder = folder
        self.state = copy_glance_state(template, folder / "glance")
        self._extra: list[Glance] = []
        self.keystone = Keystone(template, folder / "keystone")
        try:
            self.glance = Glance(self.state, keystone=self.keystone.url, wait=False)
            self._extra.append(self.glance)
            self.keystone.server.wait_ready()
            admin = self.keystone.populate([_SERVICE, MEMBER, READER, OTHER])
            self.keystone.users["admin"] = self.keystone.call(
                "GET", "/users?name=admin", token=admin
            )["users"][0]["id"]
            self.keystone.move_identity(token=admin)
            urls = {"public": self.glance.url, "internal": self.glance.url + "/v2/"}
            self.keystone.publish("image", urls, token=admin)
            self.admin_token = admin
            self.glance.server.wait_ready()
        except BaseException:
            self.stop()
            raise

    def another(self, options: GlanceOptions) -> Glance:
        """Start one more Glance on the same database and store; it ends with the cloud."""
        glance = Glance(self.state, options, self.keystone.url)
        self._extra.append(glance)
        return glance

    def token(self, user: User = MEMBER) -> str:
        """Return a new token of the user's."""
        return self.keystone.token(user)

    def settings(self, user: User = MEMBER) -> dict[str, str]:
        """Return what the ``--os-*`` options of this user would be: name without ``os_`` -> value."""
        return {
            "auth_url": self.keystone.url,
            "username": user.name,
            "password": user.password,
            "project_name": user.project,
            "user_domain_id": "default",
            "project_domain_id": "default",
        }

    def environ(self, user: User = MEMBER) -> dict[str, str]:
        """Return the same as ``OS_*`` variables."""
        return {f"OS_{name.upper()}": value for name, value in self.settings(user).items()}

    def stop(self) -> None:
        """End all servers."""
        for glance in self._extra:
            glance.server.stop()
        self.keystone.server.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()


@contextlib.contextmanager
def open_glance(
    template: Path, folder: Path, options: GlanceOptions | None = None
) -> Iterator[Glance]:
    """Run a Glance without Keystone in which everybody may do everything."""
    options = options or GlanceOptions(policy=OPEN_POLICY)
    with Glance(copy_glance_state(template, folder), options) as glance:
        yield glance
