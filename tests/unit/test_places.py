"""Places: how many hosts are at work, who lends, who takes back, and what the open files allow."""

from __future__ import annotations

import asyncio
import resource
from typing import TYPE_CHECKING

import pytest

from imgcache.operations.parallelism import fit_concurrency, fit_lenders
from imgcache.operations.places import Places

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator
    from typing import Any


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def started(waiting: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    return asyncio.ensure_future(waiting)


def test_who_returns_comes_before_who_begins() -> None:
    async def main() -> None:
        places = Places(1)
        await places.begin()
        places.lend()
        await places.begin()
        beginning = started(places.begin())
        await settle()
        returning = started(places.take_back())
        await settle()
        assert not returning.done()
        places.end()
        await settle()
        assert (returning.done(), beginning.done()) == (True, False)
        places.end()
        await beginning

    asyncio.run(main())


def test_so_many_may_wait_beside_those_at_work() -> None:
    async def main() -> None:
        places = Places(2, lenders=1)
        for _ in range(2):
            await places.begin()
        allowed = [places.may_lend]
        places.lend()
        await places.begin()
        assert [*allowed, places.may_lend] == [True, False]
        # One that must lend, does; but no other host begins before one of these has ended.
        places.lend()
        fourth = started(places.begin())
        await settle()
        assert not fourth.done()
        await places.take_back()
        places.end()
        await asyncio.wait_for(fourth, 5)

    asyncio.run(main())


def test_a_place_granted_to_one_who_has_gone_goes_to_the_next() -> None:
    async def main() -> None:
        places = Places(1)
        await places.begin()
        gone, next_one = started(places.begin()), started(places.begin())
        await settle()
        places.end()
        gone.cancel()
        await asyncio.wait((gone,))
        await asyncio.wait_for(next_one, 5)
        cancelled = started(places.begin())
        await settle()
        cancelled.cancel()
        await asyncio.wait((cancelled,))
        places.end()
        await asyncio.wait_for(places.begin(), 5)

    asyncio.run(main())


def test_a_place_taken_at_once_is_paid_back_before_others_begin() -> None:
    async def main() -> None:
        places = Places(1)
        await places.begin()
        places.lend()
        await places.begin()
        places.take_back_now()
        third = started(places.begin())
        places.end()
        await settle()
        assert not third.done()
        places.end()
        await asyncio.wait_for(third, 5)

    asyncio.run(main())


@pytest.fixture
def few_files() -> Iterator[int]:
    """So many open files, and no more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
    yield 1024
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.row("C5")
def test_the_soft_limit_is_raised_as_far_as_the_hard_one(
    few_files: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (few_files, 3000))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: asked.append(limits))
    assert fit_concurrency(500) == (500, None)
    assert asked == [(2064, 3000)]
    assert fit_lenders(500, 256) == 234
    fitting, notice = fit_concurrency(1000)
    assert fitting == 734
    assert notice == (
        "1000 hosts at a time need 4064 open files, the limit is 3000: now it is 734 (raise the limit with "
        "ulimit -n, or lower --concurrency)"
    )
    assert fit_lenders(734, 256) == 0


@pytest.mark.row("C5")
def test_the_real_soft_limit_is_raised(few_files: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard not in {resource.RLIM_INFINITY} and hard < 5000:
        pytest.skip("the hard limit is too low to raise anything")
    assert fit_concurrency(1000) == (1000, None)
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 4064 > few_files
