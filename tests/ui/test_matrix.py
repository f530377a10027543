"""The matrix of `imgcache list --matrix`: hosts x images on one screen."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imgcache.model import EntryKind
from imgcache.plan import MissingImage
from imgcache.ui.formats import width_of
from imgcache.ui.matrix import SIGNS, matrix_text
from ui.life_samples import FOREVER, MOMENT, failure, list_report, listed, manifest
from ui.samples import HOSTILE, assert_clean


def fleet(count: int = 17) -> list[str]:
    return [f"edge1-{number:02}" for number in range(1, count + 1)]


def test_hosts_with_equal_rows_are_one_row() -> None:
    entries = [listed(host) for host in fleet()]
    entries += [listed(host, "rescue", users=2) for host in fleet(3)]
    made = list_report(*entries, hosts=("edge1-18",), failures=(failure("edge1-19"),))
    assert matrix_text(made, 80) == (
        "HOST           debian-12  rescue\n"
        "edge1-18           .        .\n"
        "edge1-[01-03]      x        u\n"
        "edge1-[04-17]      x        .\n"
        "edge1-19           !        !\n"
        "\n"
        "u in use, x there, unused, . not there, ! host not examined\n"
    )


@pytest.mark.parametrize(
    ("given", "sign"),
    [
        ({}, "x"),
        ({"users": 3}, "u"),
        ({"live": True}, "u"),
        ({"users": None}, "?"),
        ({"manifest": manifest(FOREVER)}, "p"),
        ({"manifest": manifest(MOMENT + timedelta(days=9))}, "p"),
        # The pin has run out by the host's own clock: its mtime is MOMENT, its age two hours.
        ({"manifest": manifest(MOMENT + timedelta(hours=1))}, "x"),
        ({"manifest": manifest(FOREVER), "users": 1}, "b"),
        ({"manifest": manifest(FOREVER), "users": None}, "p"),
        ({"kind": EntryKind.RESIZED, "entry_name": f"{'a' * 40}_10", "manifest": None}, "r"),
        ({"kind": EntryKind.QUEUED, "manifest": None}, "q"),
    ],
)
def test_each_state_has_its_sign_and_the_legend_says_it(given: dict[str, Any], sign: str) -> None:
    text = matrix_text(list_report(listed("h1", **given)), 80)
    assert text.splitlines()[1].split() == ["h1", sign]
    assert text.splitlines()[-1] == f"{sign} {SIGNS[sign]}"


def test_a_resized_copy_in_use_shows_in_its_images_column() -> None:
    copy = listed("h1", kind=EntryKind.RESIZED, entry_name=f"{'a' * 40}_10", users=1, manifest=None)
    text = matrix_text(list_report(listed("h1"), copy), 80)
    assert text.splitlines()[:2] == ["HOST  debian-12", "h1        u"]


def test_what_is_no_image_has_no_column() -> None:
    others = [
        listed("h1", None, kind=kind, entry_name="x")
        for kind in (EntryKind.FOREIGN, EntryKind.STAGING, EntryKind.SWAP, EntryKind.EPHEMERAL)
    ]
    assert matrix_text(list_report(*others), 80).splitlines() == [
        "HOST",
        "h1",
        "",
        "no images there",
    ]


def test_images_without_a_name_come_last_and_gone_ones_are_marked() -> None:
    entries = [
        listed("h1", None, base="0123abcd" * 5, manifest=None),
        listed("h1", "zebra", gone=True),
    ]
    text = matrix_text(list_report(*entries), 80)
    assert text.splitlines()[0].split() == ["HOST", "zebra*", "(0123abcd)"]
    assert text.splitlines()[-1].endswith("* gone from the image service")


def test_an_image_that_no_host_has_has_a_column_when_it_was_asked_for() -> None:
    missing = MissingImage("h1", "edge-1", None, "id-of-new", "new")
    text = matrix_text(list_report(listed("h1"), missing=(missing,)), 80)
    assert text.splitlines()[:2] == ["HOST  debian-12  new", "h1        x       ."]


def test_names_that_do_not_fit_become_numbers_with_a_list() -> None:
    names = [f"image-number-{number:02}" for number in range(1, 13)]
    text = matrix_text(list_report(*(listed("h1", name) for name in names)), 60)
    lines = text.splitlines()
    assert lines[0].split() == ["HOST", *(str(number) for number in range(1, 13))]
    assert lines[1].split() == ["h1", *["x"] * 12]
    listed_names = " ".join(lines[3:-2])
    for number, name in enumerate(names, 1):
        assert f"{number} {name}" in listed_names


def test_more_images_than_fit_are_wrapped_into_blocks() -> None:
    names = [f"i{number:03}" for number in range(150)]
    lines = matrix_text(list_report(*(listed("h1", name) for name in names)), 80).splitlines()
    heads = [word for line in lines if line.startswith("HOST") for word in line.split()[1:]]
    assert heads == [str(number) for number in range(1, 151)]
    assert sum(line.startswith("HOST") for line in lines) > 1
    assert max(map(len, lines)) <= 80


def test_a_long_node_set_is_wrapped_behind_commas() -> None:
    hosts = [f"site{letter}-{number}" for letter in "abcdefgh" for number in (1, 3, 5)]
    text = matrix_text(list_report(*(listed(host) for host in hosts)), 60)
    rows = text.partition("\n\n")[0].splitlines()[1:]
    assert len(rows) > 3
    assert all(len(row) <= 60 for row in rows)
    joined = "".join(row[:24].strip() for row in rows)
    assert joined == ",".join(f"site{letter}-[1,3,5]" for letter in "abcdefgh")


def test_no_host_no_matrix() -> None:
    assert matrix_text(list_report(), 80) == ""


@pytest.mark.row("M6")
@pytest.mark.row("R20")
def test_nothing_goes_out_raw() -> None:
    made = list_report(listed(HOSTILE, HOSTILE), listed("h2", None, image_id=HOSTILE))
    assert_clean(matrix_text(made, 80))


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(fleet(30)),
        st.sets(st.text("abcdefgh漢-", min_size=1, max_size=40), max_size=12),
        max_size=30,
    ),
    st.integers(min_value=40, max_value=200),
)
def test_it_fits_and_every_host_and_image_is_there(have: dict[str, set[str]], width: int) -> None:
    entries = [
        listed(host, name, base=name.encode().hex()[:40].ljust(40, "0"))
        for host, names in have.items()
        for name in sorted(names)
    ]
    text = matrix_text(list_report(*entries, hosts=tuple(have)), width)
    lines = text.splitlines()
    assert all(width_of(line) <= width for line in lines)
    count = len({name for names in have.values() for name in names})
    heads = [line for line in lines if line.startswith("HOST")]
    assert sum(len(line.split()) - 1 for line in heads) == count
    if have:
        distinct = {frozenset(names) for names in have.values()}
        # One row per distinct host at least, in every block; long node sets take more lines.
        rows = text.partition("\n\n")[0].splitlines()[1:]
        assert len(rows) >= len(distinct)
