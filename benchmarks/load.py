"""A load generator: send one prepared request over and over through a few connections, and count the answers."""

from __future__ import annotations

import asyncio
import sys
import time


async def _connection(port: int, request: bytes, until: float) -> int:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answered = 0
    try:
        while time.perf_counter() < until:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(f"answered with {head.splitlines()[0]!r}")
            length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
            await reader.readexactly(length)
            answered += 1
    finally:
        writer.close()
    return answered


async def main(port: int, seconds: float, connections: int, request: bytes) -> None:
    start = time.perf_counter()
    counts = await asyncio.gather(*(_connection(port, request, start + seconds) for _ in range(connections)))
    print(sum(counts) / (time.perf_counter() - start))


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), sys.stdin.buffer.read()))
