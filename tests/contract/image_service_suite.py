"""What every image service promises: ``imgcache.images.base``, as tests.

A test module subclasses ``ImageServiceSuite`` and gives a ``shelf`` fixture.
"""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

import pytest

from imgcache.errors import ExitCode, ImageProblemsError, ImageServiceError
from imgcache.model import ImageId

if TYPE_CHECKING:
    from imgcache.images.base import ImageService

MIB = 1024 * 1024
UNKNOWN_ID = "00000000-0000-4000-8000-00000000dead"


class Shelf(Protocol):
    """A real place that images can be put into."""

    def add(self, name: str, data: bytes, *, active: bool = True) -> str:
        """Put a raw image there; return its id."""

    def cut(self, image_id: str, size: int) -> None:
        """Make an image's data shorter behind the service's back."""

    def grow(self, image_id: str, more: bytes) -> None:
        """Make an image's data longer behind the service's back."""

    def open(self) -> ImageService:
        """Return a service that knows all that was added; ended with the test."""


def problems_of(service: ImageService, *names: str) -> dict[str, str]:
    """Return where -> what of the problems that finding these images must raise."""
    with pytest.raises(ImageProblemsError) as caught:
        service.find_images(names)
    assert caught.value.exit_code == ExitCode.IMAGE_SERVICE
    return {problem.where: problem.what for problem in caught.value.problems}


class ImageServiceSuite:
    """See the module."""

    def test_finds_by_id_and_by_name_in_the_order_given(self, shelf: Shelf) -> None:
        one, two = shelf.add("one", b"1" * 700), shelf.add("two", b"2" * 900)
        found = shelf.open().find_images(["two", one])
        assert [(image.id, image.name) for image in found] == [(two, "two"), (one, "one")]

    def test_an_image_named_twice_comes_once(self, shelf: Shelf) -> None:
        one = shelf.add("twice", b"1" * 700)
        found = shelf.open().find_images([one, "twice", one])
        assert [image.id for image in found] == [one]

    def test_tells_size_formats_and_a_strong_digest(self, shelf: Shelf) -> None:
        data = os.urandom(12345)
        image_id = shelf.add("facts", data)
        (image,) = shelf.open().find_images([image_id])
        assert image.size_bytes == 12345
        assert (image.disk_format, image.container_format) == ("raw", "bare")
        assert image.digest.algo == "sha512"
        assert image.digest.value == hashlib.sha512(data).hexdigest()
        assert not image.digest.weak

    @pytest.mark.parametrize(
        "name", ["a:b", "c, d", 'e "f"', "eq:g", "in:h,i", "ünï ✓", "j&k=l#m?n", "%41"]
    )
    def test_names_are_taken_as_they_are(self, shelf: Shelf, name: str) -> None:
        image_id = shelf.add(name, b"1" * 700)
        assert [image.id for image in shelf.open().find_images([name])] == [image_id]

    def test_names_are_compared_exactly(self, shelf: Shelf) -> None:
        shelf.add("Exactly-This", b"1" * 700)
        assert set(problems_of(shelf.open(), "exactly-this", "Exactly")) == {
            "exactly-this",
            "Exactly",
        }

    def test_lists_every_problem_at_once(self, shelf: Shelf) -> None:
        shelf.add("good", b"1" * 700)
        shelf.add("blocked", b"1" * 700, active=False)
        first, second = shelf.add("double", b"1" * 700), shelf.add("double", b"2" * 700)
        problems = problems_of(shelf.open(), "nowhere", "good", UNKNOWN_ID, "double", "blocked")
        assert set(problems) == {"nowhere", UNKNOWN_ID, "double", "blocked"}
        assert first in problems["double"]
        assert second in problems["double"]
        assert "deactivated" in problems["blocked"]

    def test_suggests_a_name_that_is_near(self, shelf: Shelf) -> None:
        shelf.add("ubuntu-nearby-24.04", b"1" * 700)
        with pytest.raises(ImageProblemsError) as caught:
            shelf.open().find_images(["ubuntu-nearby-2404"])
        (problem,) = caught.value.problems
        assert "ubuntu-nearby-24.04" in (problem.hint or "")

    @pytest.mark.row("N12")
    def test_refuses_an_empty_image(self, shelf: Shelf) -> None:
        image_id = shelf.add("empty", b"")
        assert "0 bytes" in problems_of(shelf.open(), image_id)[image_id]

    @pytest.mark.row("C9")
    @pytest.mark.parametrize(
        "name", ["", "../../v2/info", "--name", "x\0y", "http://x/", "a\x1b[31mb"]
    )
    def test_strange_names_are_just_not_found(self, shelf: Shelf, name: str) -> None:
        (where,) = problems_of(shelf.open(), name)
        assert where.isprintable()

    def test_reads_all_in_blocks_of_at_most_a_mebibyte(self, shelf: Shelf) -> None:
        data = os.urandom(2 * MIB + 77)
        image_id = shelf.add("large", data)
        service = shelf.open()
        (image,) = service.find_images([image_id])
        with service.read(image) as blocks:
            parts = list(blocks)
        assert b"".join(parts) == data
        assert max(map(len, parts)) <= MIB

    @pytest.mark.parametrize("offset", [1, 700_000, MIB + 5, 2 * MIB - 1, 2 * MIB])
    def test_reads_from_an_offset(self, shelf: Shelf, offset: int) -> None:
        data = os.urandom(2 * MIB)
        service = shelf.open()
        image_id = shelf.add("offset", data)
        service = shelf.open()
        (image,) = service.find_images([image_id])
        with service.read(image, offset=offset) as blocks:
            assert b"".join(blocks) == data[offset:]

    def test_a_read_may_be_left_early(self, shelf: Shelf) -> None:
        image_id = shelf.add("early", os.urandom(3 * MIB))
        service = shelf.open()
        (image,) = service.find_images([image_id])
        with service.read(image) as blocks:
            next(blocks)

    @pytest.mark.row("N4")
    def test_data_that_is_short_is_an_error(self, shelf: Shelf) -> None:
        image_id = shelf.add("short", os.urandom(2 * MIB))
        service = shelf.open()
        (image,) = service.find_images([image_id])
        shelf.cut(image_id, MIB + 3)
        with pytest.raises(ImageServiceError), service.read(image) as blocks:
            list(blocks)

    @pytest.mark.row("N5")
    def test_never_gives_more_than_the_size(self, shelf: Shelf) -> None:
        """A server that states the length hides what follows; any other must be caught."""
        data = os.urandom(MIB)
        image_id = shelf.add("long", data)
        service = shelf.open()
        (image,) = service.find_images([image_id])
        shelf.grow(image_id, b"more")
        received: list[bytes] = []
        with suppress(ImageServiceError), service.read(image) as blocks:
            received.extend(blocks)
        assert b"".join(received) in {b"", data}

    def test_several_threads_may_use_it(self, shelf: Shelf) -> None:
        data = {
            shelf.add(f"thread-{number}", os.urandom(MIB + number)): number for number in range(4)
        }
        service = shelf.open()

        def size(image_id: str) -> int:
            (image,) = service.find_images([image_id])
            with service.read(image) as blocks:
                return sum(map(len, blocks))

        with ThreadPoolExecutor(4) as pool:
            sizes = list(pool.map(size, list(data) * 2))
        assert sizes == [MIB + number for number in data.values()] * 2

    def test_describes_itself_in_one_line(self, shelf: Shelf) -> None:
        described = shelf.open().describe()
        assert described
        assert described.isprintable()

    def test_closing_twice_is_fine(self, shelf: Shelf) -> None:
        with shelf.open() as service:
            service.close()

    def test_lists_all_images_whatever_their_state(self, shelf: Shelf) -> None:
        one = shelf.add("one", b"1" * 700)
        two = shelf.add("two", b"2" * 700, active=False)
        listed = {image_id: (name, status) for image_id, name, status in shelf.open().list_images()}
        assert listed[ImageId(one)] == ("one", "active")
        assert listed[ImageId(two)] == ("two", "deactivated")

    def test_tells_what_is_gone(self, shelf: Shelf) -> None:
        one = shelf.add("one", b"1" * 700)
        two = shelf.add("two", b"2" * 700, active=False)
        service = shelf.open()
        assert not service.is_gone(ImageId(one))
        assert not service.is_gone(ImageId(one.upper()))
        assert not service.is_gone(ImageId(two))
        assert service.is_gone(ImageId(UNKNOWN_ID))
