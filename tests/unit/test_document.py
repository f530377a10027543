"""YAML read strictly (C7): every odd file ends in one ConfigError that names line and column."""

from __future__ import annotations

import time
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from imgcache.config.inventory import parse_inventory
from imgcache.document import MAX_DEPTH, MAX_PROBLEMS, MAX_VALUES, parse_document
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
        ("a: *x", "inventory.yaml:1:4", "an alias (*) without its anchor"),
        ("a: &x [b, *x]", "inventory.yaml:1:11", "inside of what it stands for"),
        ("a: &x {b: *x}", "inventory.yaml:1:11", "inside of what it stands for"),
        ("a: &x [b]\n*x : c", "inventory.yaml:2:1", "a key that is a list or a mapping"),
        ("x:\n  <<: b", "inventory.yaml:2:7", "takes a mapping, or a list of mappings"),
        ("x:\n  <<: [{a: b}, c]", "inventory.yaml:2:7", "takes a mapping, or a list of mappings"),
        ("a:\n\tb: c", "inventory.yaml:2:1", "a tab"),
        ("\ta: b", "inventory.yaml:1:1", "a tab"),
        ("a: b\n\x00", "inventory.yaml:2:1", "a NUL byte"),
        ("a: b\x1b[31m", "inventory.yaml:1:5", "control character \\x1b"),
        ("a: \ufeffb", "inventory.yaml:1:4", "control character"),
        (b"\xef\xbb\xbf\xff", "inventory.yaml:1:1", "not UTF-8"),
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
        b"a: [&n1 x" + b"".join(b",&n%d [*n%d]" % (n, n - 1) for n in range(2, 9999)) + b"]",
    ],
    ids=["lists", "mappings", "dashes", "keys", "values", "string", "bomb", "chain"],
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
    document.note_empty_values()
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


LAUGHS = "a: &a [lol, lol]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in pairwise("abcdefghi")
)
MERGES = "a: &a {x: lol, y: lol}\n" + "".join(
    f"{new}: &{new} {{<<: *{old}, l: [{', '.join([f'*{old}'] * 9)}]}}\n"
    for old, new in pairwise("abcdefghi")
)


@pytest.mark.row("C7")
@pytest.mark.parametrize(
    ("content", "line"), [(LAUGHS, 7), (MERGES, 6)], ids=["aliases", "merge keys"]
)
def test_billion_laughs_are_refused_with_their_line(content: str, line: int) -> None:
    where, what = refusal(content)
    assert what == f"more than {MAX_VALUES} values, those of aliases included"
    # Each line has 9 or 10 times as many values as the one before it.
    assert where.startswith(f"inventory.yaml:{line}:")


def test_of_two_anchors_with_one_name_the_last_before_the_alias_counts() -> None:
    root = parse_document(FILE, b"x: &a one\ny: *a\nz: &a two\nw: *a").root
    assert root.data == {"x": "one", "y": "one", "z": "two", "w": "two"}


@pytest.mark.row("C7")
def test_aliases_go_no_deeper_than_what_is_written_out() -> None:
    content = "a0: &a0 x\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, MAX_DEPTH + 1))
    assert refusal(content) == (
        f"inventory.yaml:{MAX_DEPTH + 1}:12",
        f"nested deeper than {MAX_DEPTH} levels",
    )


@pytest.mark.parametrize(
    "content",
    [
        "x: &a {k: v, l: [one, two]}\ny: *a\nz: [*a, *a]",
        "x: &a {k: v, l: w}\ny: {<<: *a, k: own}",
        "x: &a {k: v, l: w}\ny: {k: own, <<: *a}",
        "x: &a {k: v}\ny: &b {k: w, m: n}\nz: {<<: [*a, *b]}",
        "x: &a {k: v}\ny: &b {<<: *a, m: n}\nz: {<<: *b, o: p}",
        "x: {<<: {k: v}, l: w}",
        "x: {'<<': plain, l: w}",
        "x: &a k\ny: {*a : v}",
        "&k x: v\ny: *k",
        "x: &a {k: {deep: v}}\ny: {<<: *a, k: {other: w}}",
        "x-defaults: &d\n  user: nova\naggregates:\n  one:\n    <<: *d\n    hosts: [h]\n",
    ],
)
def test_anchors_aliases_and_merge_keys_mean_what_they_mean_to_yaml(content: str) -> None:
    assert parse_document(FILE, content.encode()).root.data == yaml.safe_load(content)


def test_what_an_alias_repeats_has_the_place_where_it_is_written() -> None:
    document = parse_document(FILE, b"x: &a\n  k: v\ny:\n  <<: *a\n  l: w\nz: *a\n")
    assert document.where(("y", "k")) == "inventory.yaml:2:6: y.k"
    assert document.where(("y", "l")) == "inventory.yaml:5:6: y.l"
    assert document.where(("z", "k"), at_key=True) == "inventory.yaml:2:3: z.k"


def test_a_problem_that_aliases_repeat_is_told_once() -> None:
    text = "x-a: &a\n  usr: nova\n  port:\naggregates:\n"
    text += "".join(f"  a{n}: {{<<: *a, hosts: [h{n}]}}\n" for n in range(3))
    with pytest.raises(ConfigError) as caught:
        parse_inventory(FILE, text.encode())
    assert [(problem.where, problem.what) for problem in caught.value.problems] == [
        ("inventory.yaml:2:3: aggregates.a0.usr", "unknown key"),
        ("inventory.yaml:3:8: aggregates.a0.port", "has no value: give one, or remove the line"),
    ]


def test_a_byte_order_mark_in_front_is_nothing() -> None:
    document = parse_document(FILE, b"\xef\xbb\xbfa: b\n")
    assert document.root.data == {"a": "b"}
    assert document.where(("a",), at_key=True) == "inventory.yaml:1:1: a"


@pytest.mark.row("C7")
def test_files_of_other_programs_are_read_as_loaders_do() -> None:
    content = b"a: !!str 7\nb: 1\nb: 2\n"
    assert parse_document(FILE, content, as_loaders=True).root.data == {"a": "7", "b": "2"}
    with pytest.raises(ConfigError, match="cannot be read") as caught:
        parse_document(FILE, b"a: !!python/object/apply:os.system [id]\n", as_loaders=True)
    assert caught.value.problems[0].where == "inventory.yaml:1:4"
