"""Hosts with a URL of their own: where it may stand, what it may be, and two hosts behind one."""

from __future__ import annotations

from pathlib import Path

import pytest

from imgcache.config.inventory import parse_inventory
from imgcache.errors import ConfigError

FILE = Path("/srv/imgcache/inventory.yaml")


def endpoints(text: str) -> dict[str, str | None]:
    """Return host name -> endpoint."""
    inventory = parse_inventory(FILE, text.encode())
    return {
        host.name: host.settings.endpoint
        for aggregate in inventory.aggregates.values()
        for host in aggregate.hosts
    }


def problem(text: str) -> tuple[str, str, str | None]:
    """Return (place, what, hint) of the only problem."""
    with pytest.raises(ConfigError) as caught:
        parse_inventory(FILE, text.encode())
    (one,) = caught.value.problems
    return one.where.removeprefix(f"{FILE}:"), one.what, one.hint


def test_each_host_has_its_own() -> None:
    found = endpoints("""
aggregates:
  nodes:
    driver: glance-cache
    hosts:
      - {name: g1, endpoint: "https://g1.example.net:9292/"}
      - {name: g2, endpoint: "http://192.0.2.2:9292/image"}
      - g3
""")
    assert found == {
        "g1": "https://g1.example.net:9292",
        "g2": "http://192.0.2.2:9292/image",
        "g3": None,
    }


def test_the_name_of_the_host_can_be_part_of_it() -> None:
    found = endpoints("""
defaults: {endpoint: "http://{host}:9292"}
aggregates:
  a: {endpoint: "https://{host}.example.net/image", hosts: ["g[1-2]"]}
  b: {hosts: ["2001:db8::7", {name: "h[1-2]", endpoint: "http://{host}.internal"}]}
""")
    assert found == {
        "g1": "https://g1.example.net/image",
        "g2": "https://g2.example.net/image",
        "2001:db8::7": "http://[2001:db8::7]:9292",
        "h1": "http://h1.internal",
        "h2": "http://h2.internal",
    }


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("defaults: {endpoint: 'http://g'}\naggregates: {a: {hosts: [h]}}", "1:12: defaults.endpoint"),
        ("aggregates: {a: {endpoint: 'http://g', hosts: [h]}}", "1:18: aggregates.a.endpoint"),
        (
            "aggregates: {a: {hosts: [{name: 'h[1-2]', endpoint: 'http://g'}]}}",
            "1:43: aggregates.a.hosts[0].endpoint",
        ),
    ],
)  # fmt: skip
def test_one_url_for_many_hosts_is_refused(text: str, where: str) -> None:
    assert problem(text)[0] == where


@pytest.mark.parametrize(
    ("url", "what"),
    [
        ("g1:9292", "must be a URL"),
        ("file:///etc/passwd", "must be a URL"),
        ("http://u:sesame@g", "must be plain"),
        ("http://g/?a=b", "must be plain"),
        ("http://{name}:9292", "knows no placeholder but {host}"),
        ("http://{host:9292", "knows no placeholder but {host}"),
    ],
)
def test_bad_urls(url: str, what: str) -> None:
    _, said, _ = problem(f"aggregates: {{a: {{hosts: [{{name: h, endpoint: '{url}'}}]}}}}")
    assert what in said
    assert "sesame" not in said


@pytest.mark.row("C6")
@pytest.mark.parametrize(
    "second",
    ["http://G.example.net:80", "http://g.example.net./", "http://g.example.net/v2"],
)
def test_two_hosts_behind_one_url_are_refused(second: str) -> None:
    first = "{name: h, endpoint: 'http://g.example.net'}"
    text = f"aggregates: {{a: {{hosts: [{first}, {{name: i, endpoint: '{second}'}}]}}}}"
    where, what, hint = problem(text)
    assert where == "1:71: aggregates.a.hosts[1]"
    assert "i is the same machine and cache as h" in what
    assert hint is not None
    assert "balancer" in hint


@pytest.mark.parametrize("second", ["https://g", "http://g:8080", "http://g/image"])
def test_urls_that_differ_are_two_hosts(second: str) -> None:
    text = f"""
aggregates:
  a:
    hosts:
      - {{name: h, endpoint: "http://g"}}
      - {{name: i, endpoint: "{second}"}}
"""
    assert len(endpoints(text)) == 2
