"""What the inventory says about sites and relays."""

from __future__ import annotations

from pathlib import Path

import pytest

from imgcache.config.inventory import parse_inventory
from imgcache.errors import ConfigError
from imgcache.model import Site

HOSTS = "aggregates: {edge-1: {site: oslo, hosts: [h1]}, edge-2: {hosts: [h2]}}\n"


def parse(text: str) -> dict[str, Site]:
    return dict(parse_inventory(Path("/etc/inventory.yaml"), text.encode()).sites)


def problem_of(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    (problem,) = caught.value.problems
    return f"{problem.where}: {problem.what} ({problem.hint})"


def test_bandwidth_window_and_timezone() -> None:
    site = '{bandwidth: 100Mbit/s, window: "22:00-05:00", timezone: Europe/Oslo}'
    assert parse(f"sites: {{oslo: {site}}}\n{HOSTS}") == {
        "oslo": Site("oslo", 12_500_000, "22:00-05:00", "Europe/Oslo")
    }
    assert parse(f"sites: {{oslo: {{bandwidth: 12MB/s}}}}\n{HOSTS}") == {
        "oslo": Site("oslo", 12_000_000)
    }
    assert parse(HOSTS) == {}


@pytest.mark.row("C8")
@pytest.mark.parametrize(
    ("site", "said"),
    [
        (
            "olso: {bandwidth: 1M}",
            "2:3: sites.olso: no aggregate is in this site (did you mean 'oslo'?)",
        ),
        (
            "oslo: {bandwith: 1M}",
            "2:10: sites.oslo.bandwith: unknown key (did you mean 'bandwidth'?)",
        ),
        (
            "oslo: {bandwidth: 100Mb/s}",
            "'100Mb/s' is not a rate such as 100Mbit/s (bits) or 50MB/s",
        ),
        ("oslo: {window: 22-5}", "'22-5' is not a window such as 22:00-05:00"),
        ("oslo: {timezone: Europe/Olso}", "'Europe/Olso' is not a time zone such as Europe/Oslo"),
        ("oslo: 5M", "must be a mapping"),
    ],
)
def test_a_limit_that_is_for_nobody_or_makes_no_sense_is_refused(site: str, said: str) -> None:
    assert said in problem_of(f"sites:\n  {site}\n{HOSTS}")


def settings_of(text: str) -> tuple[object, ...]:
    document = f"aggregates: {{edge-1: {{hosts: [{{name: h1, {text}}}]}}}}\n"
    inventory = parse_inventory(Path("/etc/inventory.yaml"), document.encode())
    settings = inventory.aggregates["edge-1"].hosts[0].settings
    return (
        settings.relay_address, settings.relay_ports, settings.relay_tls, settings.keep_original,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("port: 22", (None, None, True, False)),
        (
            "relay_address: 192.0.2.7, relay_ports: 4900-4999",
            ("192.0.2.7", (4900, 4999), True, False),
        ),
        ("relay_ports: 4900", (None, (4900, 4900), True, False)),
        ("relay_ports: [4900, 4901]", (None, (4900, 4901), True, False)),
        ("relay_tls: off, keep_original: true", (None, None, False, True)),
        ("relay_tls: on", (None, None, True, False)),
        ("relay_tls: false", (None, None, False, False)),
    ],
)
def test_settings_of_relays(text: str, expected: tuple[object, ...]) -> None:
    assert settings_of(text) == expected


@pytest.mark.parametrize(
    "ports", ["0", "70000", "4999-4900", "4900-", "a-b", "[1, 2, 3]", "[]", "{a: b}", "4900 4901"]
)
def test_ports_that_are_none(ports: str) -> None:
    with pytest.raises(ConfigError):
        settings_of(f"relay_ports: {ports}")


def test_one_relay_address_is_for_one_host() -> None:
    shared = "aggregates: {edge-1: {relay_address: 192.0.2.7, hosts: [h1]}}\n"
    assert "is for a single host only" in problem_of(shared)
    many = "aggregates: {edge-1: {hosts: [{name: 'h[1-2]', relay_address: 192.0.2.7}]}}\n"
    assert "one address for 2 hosts" in problem_of(many)
