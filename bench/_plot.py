"""Draws what each host had at what time, as an SVG."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 720, 360, 60, 40, 30


def draw(
    path: Path, series: Mapping[int, Sequence[tuple[float, int]]], size: int, alone_s: float
) -> None:
    """Write lines of (seconds, bytes) per host, and where one host alone would have ended."""
    end = max(at for points in series.values() for at, _ in points)
    limit = max(end, alone_s) * 1.05

    def x(at: float) -> float:
        return _LEFT + at / limit * (_WIDTH - _LEFT - 20)

    def y(count: int) -> float:
        return _HEIGHT - _BOTTOM - min(count / size, 1) * (_HEIGHT - _BOTTOM - _TOP)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        f'<text x="{_LEFT}" y="18">What each of {len(series)} hosts has, MiB; seconds since the start</text>',
    ]
    for share in (0, 0.25, 0.5, 0.75, 1):
        at = y(int(size * share))
        parts.append(f'<path d="M{_LEFT} {at:.1f}H{_WIDTH - 20}" stroke="#ddd"/>')
        parts.append(f'<text x="8" y="{at + 4:.1f}">{int(size * share) >> 20}</text>')
    step = max(1, round(limit / 8))
    parts.extend(
        f'<text x="{x(second):.1f}" y="{_HEIGHT - 18}">{second}</text>'
        for second in range(0, int(limit) + 1, step)
    )
    parts.append(
        f'<path d="M{x(alone_s):.1f} {_TOP}V{_HEIGHT - _BOTTOM}" stroke="#888" stroke-dasharray="4"/>'
        f'<text x="{x(alone_s) - 4:.1f}" y="{_HEIGHT - _BOTTOM - 6}" text-anchor="end">one host alone</text>'
    )
    for number, points in series.items():
        hue = number * 360 // max(len(series), 1)
        line = " ".join(f"{x(at):.1f},{y(count):.1f}" for at, count in points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="hsl({hue} 70% 45%)"/>')
    path.write_text("\n".join([*parts, "</svg>\n"]))
