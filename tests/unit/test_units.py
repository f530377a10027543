from __future__ import annotations

import pytest

from imgcache.units import duration_text, size_text


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (-5, "0 B"),
        (999, "999 B"),
        (999.6, "1.00 kB"),
        (1000, "1.00 kB"),
        (1_250_000_000, "1.25 GB"),
        (64_000_000, "64.0 MB"),
        (999_499_999, "999 MB"),
        (999_600_000, "1.00 GB"),
        (10**18, "1000 PB"),
    ],
)
def test_sizes_have_about_three_digits(size: float, text: str) -> None:
    assert size_text(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0.0s"),
        (0.44, "0.4s"),
        (9.96, "10s"),
        (59.6, "1m 0s"),
        (185, "3m 5s"),
        (7800, "2h 10m"),
        (350_000, "4d 1h"),
    ],
)
def test_durations_have_two_units_at_most(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text
