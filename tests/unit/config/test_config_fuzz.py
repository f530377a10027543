"""Whatever the file holds: an inventory or a ConfigError, nothing else, and soon."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from imgcache.config.inventory import parse_inventory
from imgcache.config.nodesets import MAX_HOSTS, count_hosts, expand_hosts
from imgcache.config.schema import AggregateEntry, ImageServiceEntry
from imgcache.errors import ConfigError
from imgcache.text import printable

FILE = Path("/srv/inventory.yaml")
QUICK = settings(deadline=2000, max_examples=200)

_TOP = ("image_service", "defaults", "aggregates", "name")
_KEYS = st.sampled_from(
    [*_TOP, *AggregateEntry.model_fields, *ImageServiceEntry.model_fields],
)
_WORDS = st.sampled_from([
    "a", "h[1-3]", "h[01-99999999]", "glance", "directory", "libvirt", "sudo", "22", "-1", "1e9", "nan",
    "yes", "~", "''", "http://[::1", "http://x", "/a", "../b", "a/../b", "podman exec 'x", "10GiB",
    "1e999GB", "::1", "a@b", "'\\ud800'", '"\\0"', '"\\ud800"', "!x", "&a", "*a", "<<", "|", ">", "? a",
    "0x1", "\N{SNOWMAN}", "[", "]", "{", "}", "%TAG", "a:b",
])  # fmt: skip


def _flow(values: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    lists = st.lists(values, max_size=4).map(lambda items: "[" + ", ".join(items) + "]")
    pairs = st.lists(st.tuples(_KEYS | _WORDS, values), max_size=5)
    return lists | pairs.map(
        lambda items: "{" + ", ".join(f"{key}: {value}" for key, value in items) + "}"
    )


_NEAR_YAML = st.recursive(_WORDS, _flow, max_leaves=25)


def check(content: bytes) -> None:
    try:
        inventory = parse_inventory(FILE, content)
    except ConfigError as error:
        problems = error.problems
    else:
        assert all(aggregate.hosts for aggregate in inventory.aggregates.values())
        return
    assert problems
    for problem in problems:
        assert problem.where.startswith(f"{FILE}:")
        assert printable(problem.what, 10**6) == problem.what


@QUICK
@given(st.binary(max_size=300))
def test_any_bytes(content: bytes) -> None:
    check(content)


@QUICK
@given(st.text(max_size=300))
def test_any_text(content: str) -> None:
    check(content.encode("utf-8", "surrogatepass"))


@QUICK
@given(_NEAR_YAML)
def test_nearly_an_inventory(content: str) -> None:
    check(content.encode())


@QUICK
@given(_NEAR_YAML, _NEAR_YAML, _NEAR_YAML)
def test_an_inventory_with_odd_values(service: str, defaults: str, host: str) -> None:
    text = (
        f"image_service: {service}\ndefaults: {defaults}\naggregates: {{a: {{hosts: [h, {host}]}}}}"
    )
    check(text.encode())


@QUICK
@given(st.text(st.sampled_from("ab019[]-,/.:%_"), max_size=24))
def test_any_node_set(text: str) -> None:
    try:
        count = count_hosts(text)
        names = expand_hosts(text)
    except ValueError:
        return
    # Counted first, and never fewer than there are.
    assert 1 <= len(names) <= count <= MAX_HOSTS
    assert len(set(names)) == len(names)
    assert not any(name.startswith("-") for name in names)
