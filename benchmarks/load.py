"""A load generator: send one prepared request over and over through a few connections, and print answers per second.

python load.py PORT SECONDS CONNECTIONS [COUNT [RATE]] <request

With COUNT it stops after so many, too; with RATE it sends no more than that per second.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
import time
from collections.abc import Iterator


async def _connection(port: int, request: bytes, until: float, turns: Iterator[int], rate: float) -> int:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answered = 0
    started = time.perf_counter()
    try:
        while time.perf_counter() < until and next(turns, None) is not None:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(f"answered with {head.splitlines()[0]!r}")
            length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
            await reader.readexactly(length)
            answered += 1
            if rate:
                await asyncio.sleep(started + answered / rate - time.perf_counter())
    finally:
        writer.close()
    return answered


async def main(port: int, seconds: float, connections: int, count: int, rate: float, request: bytes) -> None:
    start = time.perf_counter()
    turns = iter(range(count)) if count else itertools.count()
    share = rate / connections
    counts = await asyncio.gather(
        *(_connection(port, request, start + seconds, turns, share) for _ in range(connections))
    )
    print(sum(counts) / (time.perf_counter() - start))


if __name__ == "__main__":
    numbers = [float(text) for text in sys.argv[1:]] + [0.0] * (6 - len(sys.argv))
    asyncio.run(
        main(int(numbers[0]), numbers[1], int(numbers[2]), int(numbers[3]), numbers[4], sys.stdin.buffer.read())
    )
