"""YAML read strictly (C7): every odd file ends in one ConfigError that names line and column."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from imgcache.config.document import MAX_DEPTH, MAX_PROBLEMS, parse_document
from imgcache.config.inventory import parse_inventory
from imgcache.errors import ConfigError

FILE = Path("inventory.yaml")


def refusal(content: bytes | str) -> tuple[str, str]:
    """Return where and what of the one problem that a file is refused for."""
    data = content.encode() if isinstance(content, str) else content
    with pytest.raises(ConfigError) as caught:
        parse_document(FILE, data)
    (problem,) = caught.value.problems
    return problem.where, problem.what


@pytest.mark.row("C7")
@pytest.mark.parametrize(
    ("content", "where", "what"),
    [
        ("", "inventory.yaml:1:1", "is empty"),
        ("# nothing\n", "inventory.yaml:1:1", "is empty"),
        ("a: !!python/object/apply:os.system [id]", "inventory.yaml:1:4", "tags (!)"),
        ("a: !x b", "inventory.yaml:1:4", "tags (!)"),
        ("!!map {a: b}", "inventory.yaml:1:1", "tags (!)"),
        ("a: &x [b]\nc: *x", "inventory.yaml:1:4", "anchors and aliases"),
        ("a: *x", "inventory.yaml:1:4", "anchors and aliases"),
        ("&k a: b", "inventory.yaml:1:1", "anchors and aliases"),
        ("x:\n  <<: {a: b}", "inventory.yaml:2:3", "merge keys"),
        ("a:\n\tb: c", "inventory.yaml:2:1", "a tab"),
        ("\ta: b", "inventory.yaml:1:1", "a tab"),
        ("a: b\n\x00", "inventory.yaml:2:1", "a NUL byte"),
        ("a: b\x1b[31m", "inventory.yaml:1:5", "control character \\x1b"),
        ("\ufeffa: b", "inventory.yaml:1:1", "byte order mark"),
        (b"a: b\nc: \xff", "inventory.yaml:2:4", "not UTF-8"),
        ("a: [b", "inventory.yaml:1:6", "not valid YAML"),
        ("a: b: c", "inventory.yaml:1:5", "not valid YAML"),
        ("a: 'b", "inventory.yaml:1:6", "not valid YAML"),
        ("a: b\n---\nc: d", "inventory.yaml:2:1", "a second YAML document"),
        ("? [a]\n: b", "inventory.yaml:1:3", "a key that is a list or a mapping"),
        ("'': b", "inventory.yaml:1:1", "an empty key"),
    ],
)
def test_refuses(content: bytes | str, where: str, what: str) -> None:
    found_where, found_what = refusal(content)
    assert what in found_what
    # libyaml and PyYAML differ by a line at the end of the input.
    if found_where != where:
        assert "not valid YAML" in found_what


@pytest.mark.row("C7")
def test_accepts_up_to_the_depth_and_no_deeper() -> None:
    at_limit = "[" * MAX_DEPTH + "a" + "]" * MAX_DEPTH
    assert parse_document(FILE, at_limit.encode()).root.items
    deeper = "[" * (MAX_DEPTH + 1) + "a" + "]" * (MAX_DEPTH + 1)
    assert refusal(deeper)[1] == f"nested deeper than {MAX_DEPTH} levels"


@pytest.mark.row("C7")
@pytest.mark.parametrize(
    "content",
    [
        b"[" * 10_000_000,
        b"{a: " * 2_000_000,
        b"a: " + b"- " * 3_000_000,
        b"? " * 3_000_000,
        b"[" + b"a," * 4_000_000 + b"]",
        b"a: '" + b"x" * 10_000_000,
        b"a: &a [b]\n" + b"".join(b"k%d: [*a,*a,*a,*a]\n" % n for n in range(100_000)),
    ],
    ids=["lists", "mappings", "dashes", "keys", "values", "string", "bomb"],
)
def test_refuses_what_would_exhaust_us_soon(content: bytes) -> None:
    started = time.monotonic()
    refusal(content)
    assert time.monotonic() - started < 20


@pytest.mark.row("C7")
def test_duplicate_keys_are_all_named_with_the_first_line() -> None:
    content = b"defaults: {user: a, user: b}\naggregates:\n  x: {hosts: [a]}\n  x: {hosts: [b]}\n"
    with pytest.raises(ConfigError) as caught:
        parse_inventory(FILE, content)
    found = {(problem.where, problem.what) for problem in caught.value.problems}
    assert found == {
        ("inventory.yaml:1:21: defaults.user", "given twice, first in line 1"),
        ("inventory.yaml:4:3: aggregates.x", "given twice, first in line 3"),
    }


def test_scalars_stay_text() -> None:
    data = parse_document(
        FILE, b"{a: no, b: 022, c: 1e3, d: 2001-01-01, e: '~', f: 12:30}"
    ).root.data
    assert data == {"a": "no", "b": "022", "c": "1e3", "d": "2001-01-01", "e": "~", "f": "12:30"}


@pytest.mark.row("C8")
def test_a_key_without_value_is_a_problem_at_its_place() -> None:
    document = parse_document(FILE, b"a: 1\nb:\nc: [~]\n")
    assert [problem.where for problem in document.problems] == [
        "inventory.yaml:2:3: b",
        "inventory.yaml:3:5: c[0]",
    ]


def test_lists_a_bounded_number_of_problems_by_line() -> None:
    hosts = "".join(f"  - -h{number}\n" for number in range(MAX_PROBLEMS + 7))
    with pytest.raises(ConfigError) as caught:
        parse_inventory(FILE, f"aggregates:\n a:\n  hosts:\n{hosts}".encode())
    problems = caught.value.problems
    assert len(problems) == MAX_PROBLEMS + 1
    assert problems[0].where == "inventory.yaml:4:5: aggregates.a.hosts[0]"
    assert problems[-1].what == "and 7 more problems"
