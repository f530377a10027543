"""Opening an image service: what happens before the first secret is read."""

from __future__ import annotations

import resource

import pytest

from imgcache.images.open import open_image_service
from imgcache.images.options import CloudOptions
from imgcache.model import ImageServiceSettings


@pytest.mark.row("T1")
def test_no_core_dump_can_hold_secrets() -> None:
    before = resource.getrlimit(resource.RLIMIT_CORE)
    if before[1] == 0:
        pytest.skip("no core dumps here at all")
    resource.setrlimit(resource.RLIMIT_CORE, (before[1], before[1]))
    try:
        settings = ImageServiceSettings(endpoint="http://127.0.0.1:9")
        with open_image_service(settings, CloudOptions()):
            assert resource.getrlimit(resource.RLIMIT_CORE) == (0, before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, before)
