"""Who we are to the cloud: clouds.yaml, ``OS_*`` and ``--os-*``, which wins, and what is refused."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from imgcache.errors import (
    AuthenticationError,
    ConfigError,
    ExitCode,
    ImageServiceError,
    ImageServiceUnreachableError,
)
from imgcache.images.keystone import open_cloud
from imgcache.images.open import open_image_service
from imgcache.images.options import OPTION_NAMES, CloudOptions
from imgcache.model import ImageServiceSettings
from servers.openstack import MEMBER, free_port

if TYPE_CHECKING:
    from pathlib import Path

    from imgcache.images.cloud import Cloud
    from servers.openstack import KeystoneAndGlance

#: Enough to be complete; nothing of it is asked of the network here.
AUTH: dict[str, Any] = {
    "auth_url": "http://keystone.example/v3",
    "username": "mia",
    "password": "canary-p{a}ss",
    "project_name": "demo",
    "user_domain_id": "default",
    "project_domain_id": "default",
}


def opened(
    settings: ImageServiceSettings | None = None, cloud: str | None = None, **values: str | bool
) -> Cloud:
    return open_cloud(settings or ImageServiceSettings(), CloudOptions(cloud=cloud, values=values))


def refused(
    settings: ImageServiceSettings | None = None, cloud: str | None = None, **values: str | bool
) -> str:
    with pytest.raises(ConfigError) as caught:
        opened(settings, cloud, **values)
    assert caught.value.exit_code == ExitCode.USAGE
    (problem,) = caught.value.problems
    text = f"{problem.where} {problem.what} {problem.hint}"
    assert "canary" not in text
    return text


def auth_of(cloud: Cloud, name: str) -> Any:
    """Return what the plugin was given."""
    return getattr(cloud.session.auth, "_" + name, None)


def write_clouds(home: Path, name: str = "clouds.yaml", /, **clouds: dict[str, Any]) -> Path:
    path = home / ".config" / "openstack" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump({"clouds": clouds}))
    path.chmod(0o600)
    return path


@pytest.fixture
def environ(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in AUTH.items():
        monkeypatch.setenv("OS_" + name.upper(), value)


class TestWhichCloud:
    @pytest.fixture(autouse=True)
    def files(self, private_home: Path) -> None:
        write_clouds(
            private_home,
            edge={"auth": {**AUTH, "auth_url": "http://edge.example/v3"}},
            other={"auth": {**AUTH, "auth_url": "http://other.example/v3"}},
        )

    def test_the_option_wins_over_the_inventory(self) -> None:
        settings = ImageServiceSettings(cloud="edge")
        assert opened(settings, cloud="other").auth_url == "http://other.example/v3"

    def test_the_inventory_wins_over_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OS_CLOUD", "edge")
        settings = ImageServiceSettings(cloud="other")
        assert opened(settings).auth_url == "http://other.example/v3"
        assert opened().auth_url != "http://other.example/v3"

    @pytest.mark.usefixtures("environ")
    def test_without_a_name_the_variables_are_taken(self) -> None:
        assert opened().auth_url == "http://keystone.example/v3"

    def test_an_only_entry_is_not_taken_by_accident(self, private_home: Path) -> None:
        write_clouds(private_home, only={"auth": AUTH})
        assert "nothing says which cloud" in refused()

    def test_an_unknown_name_lists_the_known(self) -> None:
        text = refused(cloud="edg")
        assert "edge, other" in text
        assert ".config/openstack" in text

    def test_options_win_over_the_file(self) -> None:
        cloud = opened(cloud="edge", username="otto", project_name="else", region_name="R2")
        assert (auth_of(cloud, "username"), auth_of(cloud, "project_name")) == ("otto", "else")
        assert cloud.region == "R2"

    @pytest.mark.usefixtures("environ")
    def test_options_win_over_the_variables(self) -> None:
        cloud = opened(
            username="otto",
            password="canary-2",
            project_name="else",
            auth_url="http://cli.example/v3",
        )
        given = [auth_of(cloud, name) for name in ("username", "password", "project_name")]
        assert given == ["otto", "canary-2", "else"]
        assert cloud.auth_url == "http://cli.example/v3"

    def test_secure_yaml_is_merged(self, private_home: Path) -> None:
        auth = {key: value for key, value in AUTH.items() if key != "password"}
        write_clouds(private_home, edge={"auth": auth})
        write_clouds(private_home, "secure.yaml", edge={"auth": {"password": "canary-secure"}})
        assert auth_of(opened(cloud="edge"), "password") == "canary-secure"


class TestFiles:
    @pytest.mark.row("R19")
    def test_the_working_directory_is_not_looked_at(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "clouds.yaml").write_text(yaml.safe_dump({"clouds": {"edge": {"auth": AUTH}}}))
        (tmp_path / "secure.yaml").write_text("clouds: {}")
        monkeypatch.chdir(tmp_path)
        assert "was not found" in refused(cloud="edge")
        monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", "clouds.yaml")
        assert opened(cloud="edge").auth_url == AUTH["auth_url"]

    def test_a_named_file_must_be_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", "/nowhere/clouds.yaml")
        assert "/nowhere/clouds.yaml" in refused(cloud="edge")

    @pytest.mark.row("C11")
    def test_a_file_that_others_can_write_is_refused(self, private_home: Path) -> None:
        write_clouds(private_home, edge={"auth": AUTH}).chmod(0o606)
        assert "others can write it" in refused(cloud="edge")

    @pytest.mark.row("C7")
    @pytest.mark.parametrize(
        "text", ["clouds: [", "clouds: !!python/name:os.system x", "a: b\n\tc: d", "7", "\0"]
    )
    def test_a_damaged_file_is_named(self, private_home: Path, text: str) -> None:
        path = write_clouds(private_home, edge={"auth": AUTH})
        path.write_text(text)
        assert str(path) in refused(cloud="edge")


def entry_text(auth: str = "", beside: str = "") -> str:
    """Return a clouds.yaml, one key a line; ``auth`` and ``beside`` are one more each."""
    lines = ["clouds:", "  edge:", *([f"    {beside}"] if beside else []), "    auth:"]
    lines += [f"      {key}: '{value}'" for key, value in AUTH.items() if f"{key}:" not in auth]
    return "\n".join([*lines, *([f"      {auth}"] if auth else []), ""])


class TestEntriesThatMakeNoSense:
    """Each is an error with file, line, column and key; none of them may look like a bug of ours."""

    def refused(self, home: Path, text: str) -> str:
        path = write_clouds(home, edge={"auth": AUTH})
        path.write_text(text)
        said = refused(cloud="edge")
        place, _, rest = said.partition(f"{path}:")
        assert place == "", said
        line, column, rest = rest.split(":", 2)
        assert int(line) > 0
        assert int(column) > 0
        return f"{text.splitlines()[int(line) - 1].strip()} |{rest}"

    @pytest.mark.parametrize(
        "key",
        [
            "region_name",
            "interface",
            "verify",
            "cacert",
            "image_api_version",
            "auth_type",
            "regions",
        ],
    )
    def test_a_foreign_key_in_auth(self, private_home: Path, key: str) -> None:
        value = "[x]" if key == "regions" else "x"
        said = self.refused(private_home, entry_text(f"{key}: {value}"))
        assert said.startswith(f"{key}: {value} | edge.auth.{key} ")
        assert key == "regions" or f"write {key}: beside auth:" in said

    def test_a_dash_is_an_underscore(self, private_home: Path) -> None:
        said = self.refused(private_home, entry_text("region-name: x"))
        assert "write region_name: beside auth:" in said

    def test_a_misspelt_key_in_auth(self, private_home: Path) -> None:
        said = self.refused(private_home, entry_text("project_nam: x"))
        assert "did you mean project_name?" in said
        assert "it takes auth_url" in self.refused(private_home, entry_text("qqq: x"))

    @pytest.mark.parametrize(
        ("value", "word"),
        [("", "is empty"), ("hello", "must be a mapping"), ("[a]", "must be a mapping")],
    )
    def test_auth_is_no_mapping(self, private_home: Path, value: str, word: str) -> None:
        text = f"clouds:\n  edge:\n    auth: {value}\n"
        assert word in self.refused(private_home, text)

    @pytest.mark.parametrize("value", ["[http://k/v3]", "{a: b}", "7", "", "keystone.example"])
    def test_auth_url_is_no_url(self, private_home: Path, value: str) -> None:
        said = self.refused(private_home, entry_text(f"auth_url: {value}"))
        assert "edge.auth.auth_url" in said

    @pytest.mark.parametrize("key", ["password", "username", "project_id"])
    @pytest.mark.parametrize("value", ["[x]", "{a: b}", ""])
    def test_a_value_is_no_text(self, private_home: Path, key: str, value: str) -> None:
        assert f"edge.auth.{key}" in self.refused(private_home, entry_text(f"{key}: {value}"))

    def test_an_empty_password_that_secure_yaml_gives(self, private_home: Path) -> None:
        write_clouds(private_home, edge={"auth": {**AUTH, "password": None}})
        write_clouds(private_home, "secure.yaml", edge={"auth": {"password": "canary-secure"}})
        assert auth_of(opened(cloud="edge"), "password") == "canary-secure"

    @pytest.mark.parametrize(
        "beside",
        [
            "region_name: {a: b}",
            "cacert: [x]",
            "verify: [x]",
            "auth_type: [password]",
            "interface: {a: b}",
            "profile: [x]",
            "regions: {name: x}",
            "regions: [[x]]",
            "regions: [{nam: x}]",
            "regions: [{name: x, values: {auth: hello}}]",
        ],
    )
    def test_a_value_beside_auth(self, private_home: Path, beside: str) -> None:
        assert self.refused(private_home, entry_text(beside=beside)).startswith(beside)

    @pytest.mark.parametrize("text", ["clouds: [edge]", "clouds:", "clouds: {edge: hello}"])
    def test_no_mapping_at_all(self, private_home: Path, text: str) -> None:
        assert "must be a mapping" in self.refused(private_home, text)

    def test_a_name_that_is_a_number(self, private_home: Path) -> None:
        path = write_clouds(private_home, edge={"auth": AUTH})
        path.write_text("clouds: {7: {auth: {}}, other: {auth: {}}}")
        assert "known are: 7, other" in refused(cloud="edge")

    def test_braces_in_a_value(self, private_home: Path) -> None:
        write_clouds(private_home, edge={"auth": {**AUTH, "auth_url": "http://{canary}/v3"}})
        assert "openstacksdk cannot use it (KeyError)" in refused(cloud="edge")

    def test_anchors_and_merge_keys_are_understood(self, private_home: Path) -> None:
        path = write_clouds(private_home, edge={"auth": AUTH})
        base = yaml.safe_dump({"auth": AUTH}, default_flow_style=True, width=9999).strip()
        path.write_text(
            f"x: &base {base}\nclouds: {{edge: {{<<: *base, region_name: R2}}, two: *base}}"
        )
        assert opened(cloud="edge").region == "R2"
        assert opened(cloud="two").auth_url == AUTH["auth_url"]

    def test_an_auth_type_without_its_package(self, private_home: Path) -> None:
        auth = {key: AUTH[key] for key in ("auth_url", "project_name", "project_domain_id")}
        path = write_clouds(private_home, edge={"auth_type": "v3kerberos", "auth": auth})
        said = refused(cloud="edge")
        assert said.startswith(f"{path}:")
        assert "edge.auth_type" in said
        assert "keystoneauth1[kerberos]" in said

    @pytest.mark.usefixtures("environ")
    def test_a_variable_that_the_auth_type_does_not_take(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("OS_AUTH_TYPE", "v3token")
        monkeypatch.setenv("OS_TOKEN", "canary-token")
        auth: Any = opened().session.auth
        assert auth.project_name == "demo"


class TestRegionsAndProfiles:
    def test_regions_is_a_text(self, private_home: Path) -> None:
        write_clouds(private_home, edge={"auth": AUTH, "regions": "north"})
        assert "write regions: [north]" in refused(cloud="edge")

    @pytest.mark.parametrize("regions", [["north", "south"], [{"name": "north"}, "south"]])
    def test_which_region_is_used_is_said(self, private_home: Path, regions: list[Any]) -> None:
        write_clouds(private_home, edge={"auth": AUTH, "regions": regions})
        cloud = opened(cloud="edge")
        (note,) = cloud.notes
        assert "the region is north, the first of north, south" in note
        assert "(region north)" in cloud.describe()
        cloud = opened(cloud="edge", region_name="south")
        assert cloud.notes == ()
        assert "(region south)" in cloud.describe()

    def test_an_unknown_region(self, private_home: Path) -> None:
        write_clouds(private_home, edge={"auth": AUTH, "regions": ["north", "south"]})
        assert "north,south" in refused(cloud="edge", region_name="west")

    @pytest.mark.parametrize("key", ["profile", "cloud"])
    def test_an_unknown_profile(self, private_home: Path, key: str) -> None:
        path = write_clouds(private_home, edge={"auth": AUTH, key: "vexxhos"})
        said = refused(cloud="edge")
        assert said.startswith(f"{path}:")
        assert f"edge.{key} there is no profile vexxhos" in said
        assert "did you mean vexxhost?" in said

    def test_a_known_profile_and_one_of_our_own(self, private_home: Path) -> None:
        write_clouds(private_home, edge={"auth": AUTH, "profile": "otc"})
        assert opened(cloud="edge").auth_url
        own = private_home / ".config" / "openstack" / "clouds-public.yaml"
        own.write_text("public-clouds: {ours: {region_name: R7}}")
        write_clouds(private_home, edge={"auth": AUTH, "profile": "ours"})
        assert opened(cloud="edge").region == "R7"

    def test_a_profile_at_a_url_that_does_not_answer(self, private_home: Path) -> None:
        write_clouds(private_home, edge={"auth": AUTH, "profile": "http://127.0.0.1:9/"})
        with pytest.raises(ImageServiceUnreachableError, match="the profile of cloud edge"):
            opened(cloud="edge")


SSO: dict[str, Any] = {
    "auth_url": "http://127.0.0.1:9/v3",
    "identity_provider": "idp",
    "protocol": "openid",
    "project_name": "demo",
    "project_domain_id": "default",
}
DEVICE = {
    **SSO,
    "client_id": "x",
    "client_secret": "y",
    "discovery_endpoint": "http://127.0.0.1:9/",
}


class TestInteractiveLogins:
    @pytest.mark.parametrize(
        ("auth_type", "auth"),
        [
            ("v3websso", SSO),
            ("v3oidcdeviceauthz", DEVICE),
            (
                "v3oidcpassword",
                {**DEVICE, "username": "u", "password": "canary", "idp_otp_key": "otp"},
            ),
        ],
    )
    def test_without_a_terminal_they_are_refused_at_once(
        self, private_home: Path, auth_type: str, auth: dict[str, str]
    ) -> None:
        write_clouds(private_home, edge={"auth_type": auth_type, "auth": auth})
        said = refused(cloud="edge")
        assert f"{auth_type} waits for a person" in said
        assert "application credential" in said

    def test_a_code_that_was_given_waits_for_nobody(self, private_home: Path) -> None:
        auth = {**DEVICE, "code": "canary", "redirect_uri": "http://127.0.0.1:9/"}
        write_clouds(private_home, edge={"auth_type": "v3oidcauthcode", "auth": auth})
        assert opened(cloud="edge").kind == "identity"

    def test_in_a_terminal_the_url_is_shown_and_the_wait_ends(self, private_home: Path) -> None:
        auth = {**SSO, "login_timeout": 1, "redirect_port": free_port()}
        write_clouds(private_home, edge={"auth_type": "v3websso", "auth": auth})
        inventory = private_home / "inventory.yaml"
        inventory.write_text(
            "image_service: {cloud: edge}\n"
            "aggregates: {edge: {hosts: [{name: here, transport: local}]}}\n"
        )
        words = ["--inventory", str(inventory), "precache", "-a", "edge", "name"]
        ours, theirs = pty.openpty()
        try:
            done = subprocess.run(
                [sys.executable, "-m", "imgcache", *words],
                stdin=theirs,
                stderr=theirs,
                stdout=subprocess.DEVNULL,
                env={**os.environ, "BROWSER": "/bin/true"},
                timeout=60,
                check=False,
            )
            said = os.read(ours, 65536).decode()
        finally:
            os.close(ours)
            os.close(theirs)
        assert "To authenticate please go to: http://127.0.0.1:9/v3/auth/OS-FEDERATION/" in said
        assert done.returncode == ExitCode.IMAGE_SERVICE, said


class TestWhatIsRefused:
    def test_nothing_at_all(self) -> None:
        assert "--os-cloud" in refused()

    def test_no_auth_url(self) -> None:
        assert "auth_url" in refused(username="mia", password="canary")

    def test_no_password(self) -> None:
        assert "OS_PASSWORD" in refused(**{key: AUTH[key] for key in AUTH if key != "password"})

    def test_an_unknown_auth_type(self) -> None:
        assert "auth_type" in refused(**AUTH, auth_type="carrier-pigeon")

    def test_a_system_scope(self) -> None:
        assert "Glance needs a project scope" in refused(**AUTH, system_scope="all")

    def test_an_application_credential_with_a_project(self) -> None:
        values: dict[str, Any] = {
            "application_credential_id": "1",
            "application_credential_secret": "canary",
        }
        assert "its own project" in refused(
            auth_url=AUTH["auth_url"], project_name="demo", **values
        )

    def test_a_user_without_a_domain(self) -> None:
        assert "domain" in refused(
            auth_type="v3password", username="u", password="canary", auth_url="http://k"
        )

    def test_a_ca_file_that_is_not_there(self) -> None:
        assert "/nowhere/ca.pem" in refused(**AUTH, cacert="/nowhere/ca.pem")


class TestWhatIsUnderstood:
    def test_an_endpoint_alone_means_no_keystone(self) -> None:
        cloud = opened(ImageServiceSettings(endpoint="http://glance.example:9292/v2/"))
        assert cloud.kind == "none"
        assert cloud.image_endpoint() == "http://glance.example:9292"

    def test_an_endpoint_alone_takes_nothing_from_an_only_entry(self, private_home: Path) -> None:
        write_clouds(private_home, only={"auth": AUTH, "region_name": "R9", "verify": False})
        cloud = opened(ImageServiceSettings(endpoint="http://glance.example:9292"))
        assert (cloud.kind, cloud.region, cloud.insecure) == ("none", None, False)

    @pytest.mark.usefixtures("environ")
    def test_an_endpoint_beside_variables_is_where_glance_is(self) -> None:
        cloud = opened(ImageServiceSettings(endpoint="http://glance.example:9292"))
        assert cloud.kind == "identity"
        assert cloud.image_endpoint() == "http://glance.example:9292"
        cloud = opened(
            ImageServiceSettings(endpoint="http://glance.example:9292"),
            image_endpoint_override="https://better.example/image/v2.9",
        )
        assert cloud.image_endpoint() == "https://better.example/image"

    @pytest.mark.parametrize(
        ("values", "plugin"),
        [
            ({"token": "canary", "project_name": "demo"}, "Token"),
            (
                {"application_credential_id": "1", "application_credential_secret": "s"},
                "ApplicationCredential",
            ),
            (
                {
                    "auth_type": "v3password",
                    "username": "u",
                    "user_domain_id": "d",
                    "password": "p",
                },
                "Password",
            ),
        ],
    )
    def test_what_the_credentials_mean(self, values: dict[str, Any], plugin: str) -> None:
        cloud = opened(auth_url=AUTH["auth_url"], **values)
        assert type(cloud.session.auth).__name__ == plugin
        assert cloud.kind == "identity"

    @pytest.mark.parametrize("value", ["true", "True", True])
    def test_insecure(self, value: str | bool) -> None:
        cloud = opened(**AUTH, insecure=value)
        assert cloud.insecure
        assert cloud.session.verify is False

    def test_verify_false_in_the_file(self, private_home: Path) -> None:
        write_clouds(private_home, edge={"auth": AUTH, "verify": False})
        assert opened(cloud="edge").insecure
        write_clouds(private_home, edge={"auth": AUTH})
        assert not opened(cloud="edge").insecure

    def test_every_option_has_no_repr(self) -> None:
        values = dict.fromkeys(OPTION_NAMES, "canary")
        assert "canary" not in repr(CloudOptions(values=values))
        assert "canary" not in repr(opened(**AUTH))


@pytest.mark.openstack
class TestOnTheRealKeystone:
    """Every way to authenticate finds an image."""

    @pytest.fixture(scope="class")
    @classmethod
    def image_id(cls, cloud: KeystoneAndGlance) -> str:
        return cloud.glance.upload("config", b"x" * 9, token=cloud.token())

    def find(
        self, image_id: str, values: dict[str, str], settings: ImageServiceSettings | None = None
    ) -> None:
        with open_image_service(
            settings or ImageServiceSettings(), CloudOptions(values=values)
        ) as service:
            assert [image.id for image in service.find_images([image_id])] == [image_id]

    def test_password_from_variables(
        self, cloud: KeystoneAndGlance, image_id: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name, value in cloud.environ().items():
            monkeypatch.setenv(name, value)
        self.find(image_id, {})

    def test_auth_url_without_version(self, cloud: KeystoneAndGlance, image_id: str) -> None:
        self.find(
            image_id, {**cloud.settings(), "auth_url": cloud.keystone.url.removesuffix("/v3")}
        )

    def test_clouds_yaml(self, cloud: KeystoneAndGlance, image_id: str, private_home: Path) -> None:
        write_clouds(private_home, edge={"auth": cloud.settings(), "region_name": "RegionOne"})
        self.find(image_id, {}, ImageServiceSettings(cloud="edge"))

    def test_token(self, cloud: KeystoneAndGlance, image_id: str) -> None:
        settings = cloud.settings()
        del settings["password"], settings["username"], settings["user_domain_id"]
        self.find(image_id, {**settings, "token": cloud.token()})

    def test_token_and_endpoint(self, cloud: KeystoneAndGlance, image_id: str) -> None:
        values = {"auth_type": "admin_token", "token": cloud.token(), "endpoint": cloud.glance.url}
        self.find(image_id, values)

    def test_internal_interface(self, cloud: KeystoneAndGlance, image_id: str) -> None:
        self.find(image_id, {**cloud.settings(), "interface": "internal"})

    def test_a_wrong_password(self, cloud: KeystoneAndGlance, image_id: str) -> None:
        with pytest.raises(AuthenticationError) as caught:
            self.find(image_id, {**cloud.settings(), "password": "canary-wrong"})
        assert "401" in caught.value.message
        assert "req-" in caught.value.message
        assert "canary" not in caught.value.message

    def test_a_wrong_region_and_interface(self, cloud: KeystoneAndGlance, image_id: str) -> None:
        for wrong in ({"region_name": "Nowhere"}, {"interface": "admin"}):
            with pytest.raises(ImageServiceError) as caught:
                self.find(image_id, {**cloud.settings(), **wrong})
            assert "OS_REGION_NAME" in (caught.value.hint or "")

    def test_a_user_without_a_project(self, cloud: KeystoneAndGlance, image_id: str) -> None:
        values = {key: value for key, value in cloud.settings().items() if "project" not in key}
        with pytest.raises(ImageServiceError) as caught:
            self.find(image_id, values)
        assert "project" in (caught.value.hint or caught.value.message)

    def test_what_others_keep_private_is_not_found(self, cloud: KeystoneAndGlance) -> None:
        from servers.openstack import OTHER

        private = cloud.glance.upload(
            "secret", b"x" * 9, token=cloud.token(OTHER), visibility="private"
        )
        community = cloud.glance.upload(
            "common", b"x" * 9, token=cloud.token(OTHER), visibility="community"
        )
        hidden = cloud.glance.upload("veiled", b"x" * 9, token=cloud.token(MEMBER), os_hidden=True)
        with open_image_service(
            ImageServiceSettings(), CloudOptions(values=cloud.settings())
        ) as service:
            found = service.find_images([community, hidden, "common"])
            assert [image.id for image in found] == [community, hidden]
            for name, word in ((private, "no such"), ("secret", "no such"), ("veiled", hidden)):
                with pytest.raises(ImageServiceError.__mro__[1]) as caught:
                    service.find_images([name])
                assert word in caught.value.problems[0].what  # type: ignore[attr-defined]
