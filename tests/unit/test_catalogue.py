"""Which image an entry is of, in caches of drivers that call their entries differently."""

from __future__ import annotations

from typing import TYPE_CHECKING

from imgcache.drivers.libvirt import LibvirtDriver
from imgcache.guards import base_of
from imgcache.model import EntryKind
from imgcache.operations.catalogue import Catalogue, KnownImage, image_of, noted_images
from toy_driver import ToyDriver
from unit.life_values import base, entry, image_id, manifest

if TYPE_CHECKING:
    from imgcache.drivers.base import Driver

LISTED = Catalogue([(image_id(1), "one", "active"), (image_id(2), "two", "active")])
KVM, TOY = LibvirtDriver(), ToyDriver()


def test_each_driver_finds_the_same_images_by_names_of_its_own() -> None:
    assert set(LISTED.by_entry(KVM)) == {base(1), base(2)}
    assert set(LISTED.by_entry(TOY)) == {image_id(1), image_id(2)}
    (chosen,) = LISTED.resolve(["two"])
    assert LISTED.by_entry(TOY)[image_id(2)] is LISTED.by_entry(KVM)[base(2)] is chosen


def known(
    driver: Driver, *entries: object, catalogue: Catalogue = LISTED
) -> list[KnownImage | None]:
    noted = noted_images(driver, entries)  # type: ignore[arg-type]
    return [image_of(driver, one, noted, catalogue) for one in entries]  # type: ignore[arg-type]


def test_a_name_tells_before_a_manifest_and_that_before_the_list() -> None:
    by_name = entry(1, name=image_id(1), image_id=image_id(1))
    assert known(TOY, by_name) == [KnownImage(image_id(1), "one", "name")]
    both = entry(1, name=image_id(1), image_id=image_id(1), manifest=manifest(1))
    assert known(TOY, both) == [KnownImage(image_id(1), "image-1", "name")]
    assert known(KVM, entry(1, manifest=manifest(1))) == [
        KnownImage(image_id(1), "image-1", "manifest")
    ]
    assert known(KVM, entry(1)) == [KnownImage(image_id(1), "one", "hash")]
    assert known(KVM, entry(3)) == [None]
    gone = entry(3, name=image_id(3), image_id=image_id(3))
    assert known(TOY, gone) == [KnownImage(image_id(3), None, "name")]


def test_a_manifest_of_another_image_gives_no_name() -> None:
    odd = entry(1, name=image_id(1), image_id=image_id(1), manifest=manifest(2))
    assert known(TOY, odd, catalogue=Catalogue()) == [KnownImage(image_id(1), None, "name")]
    assert known(KVM, entry(1, manifest=manifest(2)), catalogue=Catalogue()) == [None]


def test_an_entry_that_claims_another_image_than_its_name_is_not_believed() -> None:
    """Else a host could have an image's copies removed by calling them those of one that is gone."""
    liar = entry(1, name=image_id(1), base=image_id(1), image_id=image_id(3))
    assert noted_images(TOY, [liar]) == {}
    assert known(TOY, liar) == [KnownImage(image_id(1), "one", "hash")]


def test_copies_belong_to_what_they_were_made_of() -> None:
    copy = entry(1, name=f"{image_id(1)}_10", kind=EntryKind.RESIZED, base=image_id(1))
    assert base_of(copy) == image_id(1)
    assert known(TOY, copy) == [KnownImage(image_id(1), "one", "hash")]
    assert base_of(entry(1, name="x", kind=EntryKind.FOREIGN)) is None
