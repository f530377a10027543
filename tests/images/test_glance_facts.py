"""The ten facts about Glance and Keystone that imgcache rests on, each seen on the real servers.

When one of these fails with a newer release, the code that rests on the fact is to be looked at.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest
import requests

from imgcache.errors import ConfigError, ImageProblemsError, ImageServiceError
from imgcache.images.open import open_image_service
from imgcache.images.options import CloudOptions
from imgcache.model import Digest, Image, ImageId, ImageServiceSettings
from servers.openstack import ADMIN, READER, Glance, GlanceOptions, copy_glance_state, find_venv

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from imgcache.images.base import ImageService
    from servers.openstack import KeystoneAndGlance, Origin

pytestmark = pytest.mark.openstack

MIB = 1024 * 1024


def without_keystone(glance: Glance) -> ImageService:
    return open_image_service(ImageServiceSettings(endpoint=glance.url), CloudOptions())


def fetch(glance: Glance, image_id: str, **headers: str) -> requests.Response:
    return glance.call("GET", f"/v2/images/{image_id}/file", headers=headers)


def truncate(glance: Glance, image_id: str, size: int) -> None:
    with glance.stored(image_id).open("r+b") as file:
        file.truncate(size)


def image(image_id: str, data: bytes) -> Image:
    """Return an image as if it had been found, for what cannot be found."""
    digest = Digest("sha512", hashlib.sha512(data).hexdigest())
    return Image(ImageId(image_id), "made", len(data), "raw", "bare", digest)


def read_fails(glance: Glance, found: Image) -> str:
    def read_all(service: ImageService) -> None:
        with service.read(found) as blocks:
            for _ in blocks:
                pass

    with without_keystone(glance) as service, pytest.raises(ImageServiceError) as caught:
        read_all(service)
    return caught.value.message


class TestFact1NoLengthOnACacheMiss:
    @pytest.mark.row("N4")
    def test_uwsgi_a_truncated_object_looks_like_a_complete_200(
        self, glance_caching: Glance
    ) -> None:
        data = os.urandom(2 * MIB)
        image_id = glance_caching.upload("fact-1", data)
        truncate(glance_caching, image_id, MIB + 5)
        answer = fetch(glance_caching, image_id)
        assert answer.status_code == 200
        assert "Content-Length" not in answer.headers
        assert "Transfer-Encoding" not in answer.headers
        assert len(answer.content) == MIB + 5

        assert f"{MIB + 5} of {2 * MIB}" in read_fails(glance_caching, image(image_id, data))

    @pytest.mark.row("N5")
    def test_uwsgi_an_object_that_grew_is_noticed(self, glance_caching: Glance) -> None:
        data = os.urandom(MIB)
        image_id = glance_caching.upload("fact-1-grown", data)
        with glance_caching.stored(image_id).open("ab") as file:
            file.write(b"more")
        assert len(fetch(glance_caching, image_id).content) == MIB + 4
        assert "more than" in read_fails(glance_caching, image(image_id, data))

    @pytest.mark.row("N7")
    def test_gunicorn_sends_chunks(self, glance_caching_gunicorn: Glance) -> None:
        glance, data = glance_caching_gunicorn, os.urandom(2 * MIB)
        image_id = glance.upload("fact-1-chunks", data)
        with without_keystone(glance) as service, service.read(image(image_id, data)) as blocks:
            assert b"".join(blocks) == data
        answer = fetch(glance, image_id)
        assert "Content-Length" in answer.headers, "a cache hit has a length"

    @pytest.mark.row("N4")
    def test_gunicorn_a_truncated_object_breaks_off(self, glance_caching_gunicorn: Glance) -> None:
        glance, data = glance_caching_gunicorn, os.urandom(2 * MIB)
        image_id = glance.upload("fact-1-chunks-cut", data)
        truncate(glance, image_id, MIB)
        with requests.get(
            f"{glance.url}/v2/images/{image_id}/file", stream=True, timeout=30
        ) as answer:
            assert answer.status_code == 200
            assert answer.headers.get("Transfer-Encoding") == "chunked"
            with pytest.raises(requests.exceptions.ChunkedEncodingError):
                assert answer.content is None
        truncate(glance, image_id, MIB)
        read_fails(glance, image(image_id, data))

    @pytest.mark.row("N4")
    def test_without_the_cache_there_is_a_length(self, glance_plain: Glance) -> None:
        data = os.urandom(2 * MIB)
        image_id = glance_plain.upload("fact-1-plain", data)
        truncate(glance_plain, image_id, MIB)
        with requests.get(
            f"{glance_plain.url}/v2/images/{image_id}/file", stream=True, timeout=30
        ) as answer:
            assert answer.headers["Content-Length"] == str(2 * MIB)
        read_fails(glance_plain, image(image_id, data))


@pytest.mark.row("N6")
def test_fact_2_damage_in_the_store_is_no_http_error(glance_plain: Glance) -> None:
    data = os.urandom(MIB)
    image_id = glance_plain.upload("fact-2", data)
    with glance_plain.stored(image_id).open("r+b") as file:
        file.seek(1000)
        file.write(bytes([data[1000] ^ 1]))
    answer = fetch(glance_plain, image_id)
    assert answer.status_code == 200
    assert answer.headers["Content-MD5"] == hashlib.md5(data).hexdigest()
    with without_keystone(glance_plain) as service:
        (found,) = service.find_images([image_id])
        with service.read(found) as blocks:
            received = b"".join(blocks)
    assert len(received) == found.size_bytes
    assert hashlib.sha512(received).hexdigest() != found.digest.value, "only the digest tells"


class TestFact3RangeDependsOnTheStore:
    @pytest.mark.row("N1")
    def test_the_file_store_serves_ranges(self, glance_plain: Glance) -> None:
        data = os.urandom(MIB)
        image_id = glance_plain.upload("fact-3", data)
        answer = fetch(glance_plain, image_id, Range="bytes=1000-")
        assert answer.status_code == 206
        assert answer.headers["Content-Range"] == f"bytes 1000-{MIB - 1}/{MIB}"
        assert answer.content == data[1000:]
        assert fetch(glance_plain, image_id, Range=f"bytes={MIB}-").status_code == 416

    @pytest.mark.row("N1")
    def test_other_stores_refuse_and_are_read_from_the_start(
        self, glance_plain: Glance, origin: Origin
    ) -> None:
        data = os.urandom(MIB + 33)
        image_id = glance_plain.register("fact-3-web", origin.url("/web.img", data))
        answer = fetch(glance_plain, image_id, Range="bytes=1000-")
        assert answer.status_code == 400
        assert "randomly" in answer.text
        found = image(image_id, data)
        with (
            without_keystone(glance_plain) as service,
            service.read(found, offset=MIB) as blocks,
        ):
            assert b"".join(blocks) == data[MIB:]

    def test_an_image_registered_by_its_url_has_no_digest(
        self, glance_plain: Glance, origin: Origin
    ) -> None:
        image_id = glance_plain.register("fact-3-blind", origin.url("/blind.img", b"x" * 9))
        with without_keystone(glance_plain) as service, pytest.raises(ImageProblemsError) as caught:
            service.find_images([image_id])
        (problem,) = caught.value.problems
        assert "digest" in problem.what
        assert "upload" in (problem.hint or "")


def test_fact_4_a_colon_in_a_name_needs_the_operator(glance_plain: Glance) -> None:
    image_id = glance_plain.upload("fact:4", b"x" * 9)
    wrong = glance_plain.call("GET", "/v2/images", params={"name": "fact:4"})
    assert wrong.status_code == 400
    right = glance_plain.call("GET", "/v2/images", params={"name": "eq:fact:4"}, expect=200)
    assert [row["id"] for row in right.json()["images"]] == [image_id]
    with without_keystone(glance_plain) as service:
        assert [found.id for found in service.find_images(["fact:4"])] == [image_id]


class TestFact5WhoMayDownload:
    @pytest.mark.row("N9")
    def test_a_reader_sees_an_image_but_may_not_download_it(self, cloud: KeystoneAndGlance) -> None:
        image_id = cloud.glance.upload("fact-5", b"x" * 9, token=cloud.token())
        reader = cloud.token(READER)
        path = f"/v2/images/{image_id}"
        assert cloud.glance.call("GET", path, token=reader).status_code == 200
        assert cloud.glance.call("GET", path + "/file", token=reader).status_code == 403

        options = CloudOptions(values=cloud.settings(READER))
        with (
            open_image_service(ImageServiceSettings(), options) as service,
            pytest.raises(ImageProblemsError) as caught,
        ):
            service.find_images([image_id])
        (problem,) = caught.value.problems
        assert "403" in problem.what
        assert "download_image" in problem.what
        assert "req-" in problem.what
        assert "member" in (problem.hint or "")

    def test_a_system_scope_is_of_no_use(self, cloud: KeystoneAndGlance) -> None:
        person = {"name": "admin", "domain": {"id": "default"}, "password": ADMIN.password}
        identity = {"methods": ["password"], "password": {"user": person}}
        body = {"auth": {"identity": identity, "scope": {"system": {"all": True}}}}
        answer = requests.post(cloud.keystone.url + "/auth/tokens", json=body, timeout=30)
        token = answer.headers["X-Subject-Token"]
        assert cloud.glance.call("GET", "/v2/images", token=token).status_code == 403

        values = {**cloud.settings(ADMIN), "system_scope": "all"}
        del values["project_name"], values["project_domain_id"]
        with pytest.raises(ConfigError) as caught:
            open_image_service(ImageServiceSettings(), CloudOptions(values=values))
        assert "project scope" in caught.value.problems[0].what


class TestFact6AccessRules:
    @pytest.fixture
    def made(self, cloud: KeystoneAndGlance) -> Iterator[dict[str, str]]:
        """Credentials by the rules they were made with: name -> token."""
        token, user = cloud.token(), cloud.keystone.users["mia"]
        self.image_id = cloud.glance.upload("fact-6", b"x" * 9, token=token)
        rule = {"service": "image", "method": "GET", "path": f"/v2/images/{self.image_id}/file"}
        tokens, ids = {}, []
        for name, rules in (("one", [rule]), ("none", [])):
            body = {"name": f"fact-6-{name}", "secret": "s" * 20, "access_rules": rules}
            answer = cloud.keystone.call(
                "POST",
                f"/users/{user}/application_credentials",
                token=token,
                json={"application_credential": body},
            )["application_credential"]
            ids.append(answer["id"])
            given = {"id": answer["id"], "secret": "s" * 20}
            identity = {"methods": ["application_credential"], "application_credential": given}
            issued = requests.post(
                cloud.keystone.url + "/auth/tokens",
                json={"auth": {"identity": identity}},
                timeout=30,
            )
            tokens[name] = issued.headers["X-Subject-Token"]
        yield tokens
        for ident in ids:
            cloud.keystone.call(
                "DELETE", f"/users/{user}/application_credentials/{ident}", token=token
            )
        for rule_ in cloud.keystone.call("GET", f"/users/{user}/access_rules", token=token)[
            "access_rules"
        ]:
            cloud.keystone.call("DELETE", f"/users/{user}/access_rules/{rule_['id']}", token=token)

    def test_a_rule_opens_one_file_and_an_empty_list_opens_everything(
        self, cloud: KeystoneAndGlance, made: dict[str, str]
    ) -> None:
        path = f"/v2/images/{self.image_id}"
        other = cloud.glance.upload("fact-6-other", b"x" * 9, token=cloud.token())
        status = {
            (name, what): cloud.glance.call(*request.split(), token=token).status_code
            for name, token in made.items()
            for what, request in (
                ("file", f"GET {path}/file"),
                ("show", f"GET {path}"),
                ("list", "GET /v2/images"),
                ("other", f"GET /v2/images/{other}/file"),
            )
        }
        assert status["one", "file"] == 200
        assert {status["one", what] for what in ("show", "list", "other")} == {401}
        assert {status["none", what] for what in ("file", "show", "list", "other")} == {200}


def test_fact_7_a_202_of_the_cache_api_promises_nothing(glance_caching: Glance) -> None:
    good, bad = (glance_caching.upload(f"fact-7-{word}", b"x" * 99) for word in ("good", "bad"))
    glance_caching.stored(bad).write_bytes(b"y" * 99)
    log = glance_caching.own / "log"
    seen = log.stat().st_size
    glance_caching.call("PUT", f"/v2/cache/{bad}", expect=202)
    deadline = time.monotonic() + 30
    while b"Exception in thread" not in log.read_bytes()[seen:]:
        assert time.monotonic() < deadline, log.read_text()[seen:]
        time.sleep(0.05)
    glance_caching.call("PUT", f"/v2/cache/{good}", expect=202)
    time.sleep(0.5)  # there is nothing to wait for: that is the point
    cache = glance_caching.call("GET", "/v2/cache", expect=200).json()
    assert good in cache["queued_images"]
    assert good not in [row["image_id"] for row in cache["cached_images"]]


def test_fact_8_without_keystone_a_policy_is_needed(
    openstack_template: Path, tmp_path: Path
) -> None:
    state = copy_glance_state(openstack_template, tmp_path / "state")
    with Glance(state, GlanceOptions()) as glance:
        assert glance.call("GET", "/v2/images").status_code == 403
        with without_keystone(glance) as service, pytest.raises(ImageServiceError) as caught:
            service.find_images(["anything"])
    assert "403" in caught.value.message
    assert "req-" in caught.value.message


def test_fact_9_glance_runs_only_under_a_wsgi_server() -> None:
    venv = find_venv()
    assert venv is not None
    ended = subprocess.run(
        [str(venv / "bin" / "glance-api")],
        env={"PATH": "/usr/bin"},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode != 0


def test_fact_10_the_loader_costs_as_much_as_the_whole_sdk() -> None:
    """So whoever imports ``images.open`` or ``images.options`` must not pay for it."""
    program = (
        "import sys, imgcache.images.open, imgcache.images.options\n"
        "heavy = {'openstack', 'keystoneauth1', 'requests', 'yaml'} & sys.modules.keys()\n"
        "assert not heavy, heavy\n"
        "import openstack.config\n"
        "assert 'openstack.connection' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True, timeout=60)
