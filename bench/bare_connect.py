"""The least a controller can do: connect to each host with asyncssh and run an empty Python."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import asyncssh
from _sshd import PORT, address


async def main(folder: Path, hosts: int, concurrency: int) -> None:
    known_hosts = asyncssh.read_known_hosts(str(folder / "known_hosts"))
    options = asyncssh.SSHClientConnectionOptions(
        known_hosts=known_hosts,
        client_keys=[asyncssh.read_private_key(folder / "user_key")],
        config=None,
    )
    places = asyncio.Semaphore(concurrency)

    async def one(number: int) -> None:
        async with places, asyncssh.connect(address(number), PORT, options=options) as connection:
            await connection.run("python3 -I -c pass", check=True)

    async with asyncio.TaskGroup() as group:
        for number in range(hosts):
            group.create_task(one(number))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
