"""Sizes and durations as people read them."""

from __future__ import annotations

_SIZE_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


def size_text(size_bytes: float) -> str:
    """Return a size in decimal units with about three digits: ``0 B``, ``1.25 GB``, ``640 MB``."""
    size = float(max(size_bytes, 0))
    for unit in _SIZE_UNITS:
        # 999.5 rounds to 1000, which belongs to the next unit.
        if size < 999.5 or unit == _SIZE_UNITS[-1]:
            return f"{size:.0f} {unit}" if unit == "B" else f"{_three_digits(size)} {unit}"
        size /= 1000
    raise AssertionError  # pragma: no cover - the last unit always returns


def _three_digits(value: float) -> str:
    if value < 9.995:
        return f"{value:.2f}"
    return f"{value:.1f}" if value < 99.95 else f"{value:.0f}"


def duration_text(duration_s: float) -> str:
    """Return a duration with its two largest units: ``0.4s``, ``42s``, ``3m 5s``, ``2h 10m``, ``4d 1h``."""
    if duration_s < 9.95:
        return f"{max(duration_s, 0.0):.1f}s"
    seconds = round(duration_s)
    days, seconds = divmod(seconds, 86_400)
    hours, seconds = divmod(seconds, 3600)
    minutes, seconds = divmod(seconds, 60)
    if days:
        return f"{days}d {hours}h"
    if hours:
        return f"{hours}h {minutes}m"
    return f"{minutes}m {seconds}s" if minutes else f"{seconds}s"


def age_text(age_s: float) -> str:
    """Return an age in one unit, so that alike ages read alike: ``35m``, ``30h``, ``12d``.

    Of a time in the future: ``-35m``.
    """
    sign, minutes = ("-" if age_s < 0 else ""), abs(age_s) / 60
    if minutes < 90:
        return f"{sign}{minutes:.0f}m"
    return f"{sign}{minutes / 60:.0f}h" if minutes < 48 * 60 else f"{sign}{minutes / 1440:.0f}d"


def share_text(share: float) -> str:
    """Return a share of 1 in percent: ``7%``; a little that is not nothing is ``<1%``."""
    return "<1%" if 0 < share < 0.005 else f"{share:.0%}"
