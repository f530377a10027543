"""The shared suite, run on every image service that there is."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

import pytest
import yaml

from contract.image_service_suite import ImageServiceSuite
from imgcache.images.open import open_image_service
from imgcache.images.options import CloudOptions
from imgcache.model import ImageServiceSettings
from servers.openstack import ADMIN

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from imgcache.images.base import ImageService
    from servers.openstack import Glance, KeystoneAndGlance


class FolderShelf:
    """A folder with ``images.yaml``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._images: list[dict[str, str]] = []
        self._write()

    def _write(self) -> None:
        text = yaml.safe_dump({"images": self._images}, allow_unicode=True)
        (self._folder / "images.yaml").write_text(text, encoding="utf-8")

    def add(self, name: str, data: bytes, *, active: bool = True) -> str:
        image_id = str(uuid.uuid4())
        (self._folder / f"{image_id}.img").write_bytes(data)
        entry = {"id": image_id, "name": name, "file": f"{image_id}.img", "disk_format": "raw"}
        self._images.append(entry if active else {**entry, "status": "deactivated"})
        self._write()
        return image_id

    def cut(self, image_id: str, size: int) -> None:
        with (self._folder / f"{image_id}.img").open("r+b") as file:
            file.truncate(size)

    def grow(self, image_id: str, more: bytes) -> None:
        with (self._folder / f"{image_id}.img").open("ab") as file:
            file.write(more)

    def open(self) -> ImageService:
        settings = ImageServiceSettings(kind="directory", path=self._folder)
        return open_image_service(settings, CloudOptions())


class GlanceShelf:
    """A real Glance. Tests share it, so names of images that are not unique get lost with them."""

    def __init__(self, glance: Glance, service: ImageService, token: str | None) -> None:
        self._glance = glance
        self._service = service
        self._token = token
        self._added: list[str] = []

    def add(self, name: str, data: bytes, *, active: bool = True) -> str:
        image_id = self._glance.upload(name, data, token=self._token)
        self._added.append(image_id)
        if not active:
            path = f"/v2/images/{image_id}/actions/deactivate"
            self._glance.call("POST", path, token=self._token, expect=204)
        return image_id

    def cut(self, image_id: str, size: int) -> None:
        with self._glance.stored(image_id).open("r+b") as file:
            file.truncate(size)

    def grow(self, image_id: str, more: bytes) -> None:
        with self._glance.stored(image_id).open("ab") as file:
            file.write(more)

    def open(self) -> ImageService:
        # One for all tests: each new one asks Keystone for a token.
        return self._service

    def end(self) -> None:
        for image_id in self._added:
            self._glance.call("DELETE", f"/v2/images/{image_id}", token=self._token, expect=204)


class TestDirectory(ImageServiceSuite):
    @pytest.fixture
    def shelf(self, tmp_path: Path) -> FolderShelf:
        return FolderShelf(tmp_path)


@pytest.fixture(scope="module")
def admin_service(cloud: KeystoneAndGlance) -> Iterator[ImageService]:
    # an admin may deactivate, and sees what everybody has
    options = CloudOptions(values=cloud.settings(ADMIN))
    with open_image_service(ImageServiceSettings(), options) as service:
        yield service


@pytest.fixture(scope="module")
def admin_token(cloud: KeystoneAndGlance) -> str:
    return cloud.token(ADMIN)


@pytest.mark.openstack
class TestGlanceWithKeystone(ImageServiceSuite):
    @pytest.fixture
    def shelf(
        self, cloud: KeystoneAndGlance, admin_service: ImageService, admin_token: str
    ) -> Iterator[GlanceShelf]:
        shelf = GlanceShelf(cloud.glance, admin_service, admin_token)
        yield shelf
        shelf.end()


@pytest.mark.openstack
class TestGlanceAlone(ImageServiceSuite):
    """Glance without Keystone, with its cache middleware: bodies come without a length."""

    @pytest.fixture
    def shelf(self, glance_caching: Glance) -> Iterator[GlanceShelf]:
        settings = ImageServiceSettings(endpoint=glance_caching.url)
        with open_image_service(settings, CloudOptions()) as service:
            shelf = GlanceShelf(glance_caching, service, None)
            yield shelf
            shelf.end()
