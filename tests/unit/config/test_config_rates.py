"""Rates of links: bits and bytes are never mixed up."""

from __future__ import annotations

import pytest

from imgcache.config.rates import bytes_per_s


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("100Mbit/s", 12_500_000), ("100 Mbit", 12_500_000), ("2.5Gbit/s", 312_500_000),
        ("512kbit/s", 64_000), ("50M", 50_000_000), ("50MB/s", 50_000_000), ("48MiB/s", 48 << 20),
        ("1 Mibit/s", 131_072), ("8000bit/s", 1000), ("100mbit/s", 12_500_000), ("5000000", 5_000_000),
        ("1GB/s", 10**9), ("100Mbitps", 12_500_000), ("1KiB/s", 1024),
    ],
)  # fmt: skip
def test_rates(text: str, expected: int) -> None:
    assert bytes_per_s(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "", "fast", "100Mb/s", "100Mbps", "100 mbps", "-5M", "0", "999", "1e9M", "100Mbit/h", "5iB",
        "9" * 400 + "T", "5TTB", "10M/s/s", "\u0665M",
    ],
)  # fmt: skip
def test_what_is_no_rate(text: str) -> None:
    with pytest.raises(ValueError, match=r"^is "):
        bytes_per_s(text)
