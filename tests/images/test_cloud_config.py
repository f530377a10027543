"""Who we are to the cloud: clouds.yaml, ``OS_*`` and ``--os-*``, which wins, and what is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import yaml

from imgcache.errors import AuthenticationError, ConfigError, ExitCode, ImageServiceError
from imgcache.images.keystone import open_cloud
from imgcache.images.open import open_image_service
from imgcache.images.options import OPTION_NAMES, CloudOptions
from imgcache.model import ImageServiceSettings
from servers.openstack import MEMBER

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
