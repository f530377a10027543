"""Reads what drivers yield."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

T = TypeVar("T")


async def collected(rows: AsyncGenerator[T, None]) -> list[T]:
    """Return all rows."""
    async with aclosing(rows):
        return [row async for row in rows]
