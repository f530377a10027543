"""Words of the command line about the life of the cache: ages, sizes, shares, dates."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
import typer

from imgcache.commands import _values
from imgcache.policy import Amount

if TYPE_CHECKING:
    from collections.abc import Callable

DAY = 86_400


@pytest.mark.parametrize(
    ("parse", "text", "value"),
    [
        (_values.parse_age, "24h", DAY),
        (_values.parse_age, "1d 12h", 1.5 * DAY),
        (_values.parse_age, "2w", 14 * DAY),
        (_values.parse_age, "90m", 5400),
        # Read, and then refused by the policy, with 3 and not with 2.
        (_values.parse_age, "0", 0),
        (_values.parse_age, "0h", 0),
        (_values.parse_age, "99999999999d", 99999999999 * DAY),
        (_values.parse_span, "30d", 30 * DAY),
        (_values.parse_size, "200G", 200 * 10**9),
        (_values.parse_size, "200GB", 200 * 10**9),
        (_values.parse_size, "200GiB", 200 * 2**30),
        (_values.parse_size, "1.5 T", 1.5 * 10**12),
        (_values.parse_size, "4096", 4096),
        (_values.parse_size, "0", 0),
        (_values.parse_rate, "50M", 50 * 10**6),
        (_values.parse_rate, "50MB/s", 50 * 10**6),
        (_values.parse_share, "80%", 0.8),
        (_values.parse_share, "100 %", 1.0),
        (_values.parse_room, "15%", Amount(share=0.15)),
        (_values.parse_room, "50G", Amount(count=50 * 10**9)),
        (_values.parse_ceiling, "20", Amount(count=20)),
        (_values.parse_ceiling, "25%", Amount(share=0.25)),
        (_values.parse_ceiling, "0", Amount(count=0)),
    ],
)
def test_what_can_be_read(parse: Callable[[str], Any], text: str, value: object) -> None:
    assert parse(text) == value


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        (_values.parse_age, "24"),
        (_values.parse_age, "-1h"),
        (_values.parse_age, "1 fortnight"),
        (_values.parse_age, "1y"),
        (_values.parse_age, "nan"),
        (_values.parse_age, ""),
        (_values.parse_age, "٣h"),
        (_values.parse_span, "0h"),
        (_values.parse_span, "6000w"),
        (_values.parse_size, "200X"),
        (_values.parse_size, "-5G"),
        (_values.parse_size, "lots"),
        (_values.parse_size, "5G%"),
        (_values.parse_size, "99999999999P"),
        (_values.parse_rate, "0"),
        (_values.parse_share, "0.8"),
        (_values.parse_share, "0%"),
        (_values.parse_share, "101%"),
        (_values.parse_room, "15 percent"),
        (_values.parse_ceiling, "-1"),
        (_values.parse_ceiling, "2.5"),
        (_values.parse_ceiling, "²"),
        (_values.parse_ceiling, "9999999999"),
        (_values.parse_moment, "tomorrow"),
        (_values.parse_moment, "2027-02-30"),
        (_values.parse_moment, "2020-01-01"),
        (_values.parse_moment, "9999-12-31T23:59-01:00"),
    ],
)
def test_what_cannot_is_told_with_what_could(parse: Callable[[str], Any], text: str) -> None:
    with pytest.raises(typer.BadParameter) as caught:
        parse(text)
    assert repr(text) in caught.value.message or repr(text.strip()) in caught.value.message
    assert any(word in caught.value.message for word in ("write", "give", "past"))


def test_a_date_without_an_offset_is_utc() -> None:
    year = datetime.now(UTC).year + 1
    assert _values.parse_moment(f"{year}-01-31") == datetime(year, 1, 31, tzinfo=UTC)
    assert _values.parse_moment(f"{year}-01-31T18:30") == datetime(year, 1, 31, 18, 30, tzinfo=UTC)
    with_offset = _values.parse_moment(f"{year}-01-31T00:30+01:00")
    assert with_offset == datetime(year, 1, 30, 23, 30, tzinfo=UTC)
    assert with_offset.utcoffset() == timedelta(0)
