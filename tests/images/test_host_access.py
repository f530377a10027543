"""Access for hosts: what they get, what it opens, and that nothing of it stays."""

from __future__ import annotations

import logging
import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import requests

from imgcache.errors import AuthenticationError
from imgcache.images import access as access_module
from imgcache.images.credential import CredentialMaker
from imgcache.images.glance import GlanceImageService
from imgcache.images.keystone import open_cloud
from imgcache.images.open import open_image_service
from imgcache.images.options import CloudOptions
from imgcache.model import ImageServiceSettings
from servers.openstack import ADMIN, MEMBER

if TYPE_CHECKING:
    from collections.abc import Iterator

    from imgcache.images.base import HostAccess
    from imgcache.model import Image, ServiceAccess
    from servers.openstack import Glance, KeystoneAndGlance, User

pytestmark = pytest.mark.openstack

DATA = b"bytes of an image" * 100


@pytest.fixture(scope="module")
def image_id(cloud: KeystoneAndGlance) -> str:
    return cloud.glance.upload("for-hosts", DATA, token=cloud.token())


@pytest.fixture(scope="module")
def other_id(cloud: KeystoneAndGlance) -> str:
    return cloud.glance.upload("not-for-hosts", DATA, token=cloud.token())


@contextmanager
def access_for(
    cloud: KeystoneAndGlance,
    image_id: str,
    *,
    user: User = MEMBER,
    settings: ImageServiceSettings | None = None,
    values: dict[str, str] | None = None,
    lifetime_s: float = 3600,
) -> Iterator[tuple[HostAccess, Image]]:
    options = CloudOptions(values=values or cloud.settings(user))
    with open_image_service(settings or ImageServiceSettings(), options) as service:
        (image,) = service.find_images([image_id])
        with service.host_access([image], "run7", lifetime_s) as access:
            yield access, image


def secret_of(access: ServiceAccess) -> str:
    assert access.token is not None
    return access.token.reveal()


def as_host(access: ServiceAccess, url: str | None = None) -> requests.Response:
    """Do as a host does."""
    headers = {"X-Auth-Token": secret_of(access)} if access.token else {}
    return requests.get(url or access.url, headers=headers, timeout=30)


def left_behind(cloud: KeystoneAndGlance, user: User = MEMBER) -> tuple[list[Any], list[Any]]:
    """Return the user's application credentials and access rules."""
    token, path = cloud.token(user), f"/users/{cloud.keystone.users[user.name]}"
    credentials = cloud.keystone.call("GET", path + "/application_credentials", token=token)
    rules = cloud.keystone.call("GET", path + "/access_rules", token=token)
    return credentials["application_credentials"], rules["access_rules"]


def test_a_host_gets_a_token_for_the_file_and_nothing_else(
    cloud: KeystoneAndGlance, image_id: str, other_id: str
) -> None:
    with access_for(cloud, image_id) as (access, image):
        given = access.for_image(image)
        assert access.warnings == ()
        assert given.url == f"{cloud.glance.url}/v2/images/{image_id}/file"
        assert as_host(given).content == DATA
        opened = {
            what: as_host(given, cloud.glance.url + path).status_code
            for what, path in (
                ("another file", f"/v2/images/{other_id}/file"),
                ("the record", f"/v2/images/{image_id}"),
                ("the list", "/v2/images"),
            )
        }
        assert set(opened.values()) == {401}
        assert as_host(given, cloud.keystone.url + "/users").status_code in {401, 403}

        (credential,), rules = left_behind(cloud)
        assert credential["name"] == "imgcache-run7"
        assert not credential["unrestricted"]
        ends_at = datetime.fromisoformat(credential["expires_at"]).replace(tzinfo=UTC)
        assert abs(ends_at - datetime.now(UTC) - timedelta(hours=1)) < timedelta(minutes=2)
        assert [rule["path"] for rule in rules] == [f"/v2/images/{image_id}/file"]
    assert left_behind(cloud) == ([], [])
    assert access.warnings == ()


def test_all_is_removed_after_an_error_too(cloud: KeystoneAndGlance, image_id: str) -> None:
    with pytest.raises(ZeroDivisionError), access_for(cloud, image_id):
        raise ZeroDivisionError
    assert left_behind(cloud) == ([], [])


def test_two_runs_at_once_do_not_take_each_others_rules(
    cloud: KeystoneAndGlance, image_id: str
) -> None:
    """Keystone keeps one rule for both; losing it would open everything or nothing."""
    options = CloudOptions(values=cloud.settings())
    with open_image_service(ImageServiceSettings(), options) as service:
        (image,) = service.find_images([image_id])
        with service.host_access([image], "first", 600) as first:
            with service.host_access([image], "second", 600) as second:
                assert secret_of(second.for_image(image)) != secret_of(first.for_image(image))
            assert second.warnings == ()
            (credential,), _ = left_behind(cloud)
            assert [rule["path"] for rule in credential["access_rules"]] == [
                f"/v2/images/{image_id}/file"
            ]
            assert as_host(first.for_image(image)).content == DATA
    assert left_behind(cloud) == ([], [])


def test_rules_that_the_user_made_stay(cloud: KeystoneAndGlance, image_id: str) -> None:
    token, user = cloud.token(), f"/users/{cloud.keystone.users['mia']}"
    rule = {"service": "image", "method": "GET", "path": f"/v2/images/{image_id}/file"}
    body = {"application_credential": {"name": "mine", "access_rules": [rule]}}
    made = cloud.keystone.call("POST", user + "/application_credentials", token=token, json=body)
    path = f"{user}/application_credentials/{made['application_credential']['id']}"
    cloud.keystone.call("DELETE", path, token=token)
    with access_for(cloud, image_id) as (access, _):
        pass
    assert access.warnings == ()
    credentials, (kept,) = left_behind(cloud)
    assert credentials == []
    cloud.keystone.call("DELETE", f"{user}/access_rules/{kept['id']}", token=token)


def test_what_an_earlier_run_left_is_removed(cloud: KeystoneAndGlance, image_id: str) -> None:
    token, user = cloud.token(), f"/users/{cloud.keystone.users['mia']}"
    rule = {"service": "image", "method": "GET", "path": "/v2/images/old/file"}
    ends_at = datetime.now(UTC) + timedelta(seconds=1.5)
    bodies = [
        {
            "name": "imgcache-crashed",
            "expires_at": f"{ends_at:%Y-%m-%dT%H:%M:%S.%f}Z",
            "access_rules": [rule],
        },
        {
            "name": "imgcache-still-running",
            "access_rules": [{**rule, "path": "/v2/images/new/file"}],
        },
    ]
    for body in bodies:
        made = {"application_credential": body}
        cloud.keystone.call("POST", user + "/application_credentials", token=token, json=made)
    time.sleep(max(0.0, (ends_at - datetime.now(UTC)).total_seconds() + 1))
    with access_for(cloud, image_id):
        pass
    (running,), rules = left_behind(cloud)
    assert running["name"] == "imgcache-still-running"
    assert [rule["path"] for rule in rules] == ["/v2/images/new/file"]
    cloud.keystone.call("DELETE", f"{user}/application_credentials/{running['id']}", token=token)
    cloud.keystone.call("DELETE", f"{user}/access_rules/{rules[0]['id']}", token=token)


def test_no_credential_is_ever_made_without_rules(cloud: KeystoneAndGlance) -> None:
    """To Keystone an empty list means: everything."""
    opened = open_cloud(ImageServiceSettings(), CloudOptions(values=cloud.settings()))
    own = opened.access()
    assert own is not None
    maker = CredentialMaker(opened, own, cloud.keystone.url)
    with pytest.raises(ValueError, match="without access rules"):
        maker.make("run7", (), 600)
    with (
        GlanceImageService(opened) as service,
        pytest.raises(ValueError, match="no image"),
        service.host_access([], "run7", 600),
    ):
        pass
    assert left_behind(cloud) == ([], [])


# ------------------------------------------------------------------------------------------ fall-backs


def test_a_glance_without_service_type_gets_a_token_of_the_operators_own(
    cloud: KeystoneAndGlance, glance_without_service_type: Glance, image_id: str
) -> None:
    settings = ImageServiceSettings(endpoint=glance_without_service_type.url)
    with access_for(cloud, image_id, settings=settings) as (access, image):
        (warning,) = access.warnings
        assert "service_type" in warning
        assert "401" in warning
        assert left_behind(cloud) == ([], []), "what was tried is removed at once"
        given = access.for_image(image)
        assert as_host(given).content == DATA
    assert access.warnings == (warning,)
    subject = {"X-Subject-Token": secret_of(given), "X-Auth-Token": cloud.token(ADMIN)}
    shown = requests.get(cloud.keystone.url + "/auth/tokens", headers=subject, timeout=30)
    assert shown.status_code == 404, "it is revoked at the end"


def test_an_admins_own_token_is_warned_about(
    cloud: KeystoneAndGlance, glance_without_service_type: Glance, image_id: str
) -> None:
    settings = ImageServiceSettings(endpoint=glance_without_service_type.url)
    with access_for(cloud, image_id, user=ADMIN, settings=settings) as (access, _):
        assert any("role admin" in warning for warning in access.warnings)


def test_an_admins_credential_needs_no_warning(cloud: KeystoneAndGlance, image_id: str) -> None:
    with access_for(cloud, image_id, user=ADMIN) as (access, image):
        assert access.warnings == ()
        assert as_host(access.for_image(image)).content == DATA
    assert left_behind(cloud, ADMIN) == ([], [])


@pytest.fixture
def credential(cloud: KeystoneAndGlance) -> Iterator[dict[str, str]]:
    """Options of an operator who has but an application credential."""
    token, path = cloud.token(), f"/users/{cloud.keystone.users['mia']}/application_credentials"
    body = {"application_credential": {"name": "operator", "secret": "canary-secret-77"}}
    made = cloud.keystone.call("POST", path, token=token, json=body)["application_credential"]
    yield {
        "auth_url": cloud.keystone.url,
        "application_credential_id": made["id"],
        "application_credential_secret": "canary-secret-77",
    }
    cloud.keystone.call("DELETE", f"{path}/{made['id']}", token=token)


def test_an_operator_with_an_application_credential_can_make_no_other(
    cloud: KeystoneAndGlance, image_id: str, credential: dict[str, str]
) -> None:
    with access_for(cloud, image_id, values=credential) as (access, image):
        (warning,) = access.warnings
        assert "no application credential" in warning
        assert as_host(access.for_image(image)).content == DATA


def test_a_token_that_was_given_is_handed_on_with_a_warning(
    cloud: KeystoneAndGlance, image_id: str
) -> None:
    token = cloud.token()
    values = {"auth_type": "admin_token", "token": token, "endpoint": cloud.glance.url}
    with access_for(cloud, image_id, values=values) as (access, image):
        (warning,) = access.warnings
        assert "cannot be narrowed" in warning
        given = access.for_image(image)
        assert secret_of(given) == token
        with pytest.raises(AuthenticationError):
            access.for_image(image, refused=given.token)


def test_an_open_glance_needs_no_token(glance_plain: Glance) -> None:
    open_id = glance_plain.upload("open", DATA)
    settings = ImageServiceSettings(endpoint=glance_plain.url)
    with open_image_service(settings, CloudOptions()) as service:
        (image,) = service.find_images([open_id])
        with service.host_access([image], "run7", 600) as access:
            given = access.for_image(image)
            assert given.token is None
            assert access.warnings == ()
            assert as_host(given).content == DATA


# -------------------------------------------------------------------------------------------- renewal


@pytest.mark.row("N8")
def test_a_refused_token_is_replaced_once_for_all_hosts(
    cloud: KeystoneAndGlance, image_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with access_for(cloud, image_id) as (access, image):
        old = access.for_image(image).token
        monkeypatch.setattr(access_module, "MIN_RENEWAL_INTERVAL_S", 0.0)
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: access.for_image(image, refused=old), range(8)))
        tokens = {secret_of(answer) for answer in answers}
        assert len(tokens) == 1
        assert old is not None
        assert old.reveal() not in tokens
        assert as_host(answers[0]).content == DATA


@pytest.mark.row("M8")
def test_a_host_that_refuses_every_token_gets_no_third(
    cloud: KeystoneAndGlance, image_id: str
) -> None:
    with access_for(cloud, image_id) as (access, image):
        given = access.for_image(image)
        with pytest.raises(AuthenticationError):
            access.for_image(image, refused=given.token)
        assert secret_of(access.for_image(image)) == secret_of(given)


def test_a_run_may_outlast_its_credential(
    cloud: KeystoneAndGlance, image_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access_module, "MIN_RENEWAL_INTERVAL_S", 0.0)
    with access_for(cloud, image_id, lifetime_s=60) as (access, image):
        # less than two minutes are left: the next token is of a second credential
        assert as_host(access.for_image(image)).content == DATA
        names = {row["name"] for row in left_behind(cloud)[0]}
        assert names == {"imgcache-run7", "imgcache-run7-2"}
    assert left_behind(cloud) == ([], [])


# ---------------------------------------------------------------------------------- where hosts look


def test_below_a_prefix_both_paths_are_allowed(
    cloud: KeystoneAndGlance, glance_below_prefix: Glance, image_id: str
) -> None:
    settings = ImageServiceSettings(endpoint=glance_below_prefix.url + "/v2/")
    with access_for(cloud, image_id, settings=settings) as (access, image):
        given = access.for_image(image)
        assert access.warnings == ()
        assert given.url == f"{glance_below_prefix.url}/v2/images/{image_id}/file"
        assert as_host(given).content == DATA
        assert {rule["path"] for rule in left_behind(cloud)[1]} == {
            f"/v2/images/{image_id}/file",
            f"/image/v2/images/{image_id}/file",
        }


def test_hosts_may_have_another_interface_or_endpoint(
    cloud: KeystoneAndGlance, image_id: str
) -> None:
    settings = ImageServiceSettings(host_interface="internal")
    with access_for(cloud, image_id, settings=settings) as (access, image):
        # the catalogue's internal URL ends in /v2/
        assert access.for_image(image).url == f"{cloud.glance.url}/v2/images/{image_id}/file"
    settings = ImageServiceSettings(host_endpoint="https://glance.edge.example:9292/v2")
    with access_for(cloud, image_id, settings=settings) as (access, image):
        url = access.for_image(image).url
    assert url == f"https://glance.edge.example:9292/v2/images/{image_id}/file"


# -------------------------------------------------------------------------------------------- secrets


@pytest.mark.row("T1")
def test_no_secret_shows_anywhere(
    cloud: KeystoneAndGlance,
    image_id: str,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    private_home: Path,
) -> None:
    caplog.set_level(logging.DEBUG)
    logging.getLogger("keystoneauth").setLevel(logging.DEBUG)
    options = CloudOptions(values=cloud.settings())
    shown = [repr(options), str(options)]
    with open_image_service(ImageServiceSettings(), options) as service:
        (image,) = service.find_images([image_id])
        with service.read(image) as blocks:
            assert b"".join(blocks) == DATA
        with service.host_access([image], "run7", 600) as access:
            given = access.for_image(image)
            shown += [repr(thing) for thing in (service, access, given, vars(service), image)]
            own = service._cloud.session.get_token()  # type: ignore[attr-defined]
            with pytest.raises(AuthenticationError) as caught:
                access.for_image(image, refused=given.token)
            shown.append(repr(caught.value))
    out, err = capfd.readouterr()
    shown += [caplog.text, out, err, repr(os.environ), Path("/proc/self/cmdline").read_text()]
    shown += [
        path.read_text(errors="replace") for path in private_home.rglob("*") if path.is_file()
    ]
    text = "\n".join(shown)
    for secret in (MEMBER.password, own, secret_of(given)):
        assert secret not in text
    assert '"secret"' not in text
