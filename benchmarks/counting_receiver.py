"""A receiver that answers every delivery at once, and says what came.

python counting_receiver.py PORT

`GET /arrivals` answers {"count", "first", "last", "times": {message id: Unix seconds}}, and starts anew.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import ClassVar

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Arrivals:
    """When which message came."""

    times: ClassVar[dict[str, float]] = {}


class Receiving(asyncio.Protocol):
    """Reads requests just far enough to know where they end."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.received = b""

    def data_received(self, data: bytes) -> None:
        self.received += data
        while (end := self.received.find(b"\r\n\r\n")) >= 0:
            lines = self.received[:end].split(b"\r\n")
            headers = dict(line.lower().split(b": ", 1) for line in lines[1:])
            total = end + 4 + int(headers.get(b"content-length", b"0"))
            if len(self.received) < total:
                return
            # In its own case: names are lower case now, and so would be the id.
            ids = [line.split(b": ")[1] for line in lines if line.lower().startswith(b"upstash-message-id")]
            self.received = self.received[total:]
            if not ids:
                self.report()
            else:
                Arrivals.times[ids[0].decode()] = time.time()
                self.transport.write(ANSWER)

    def report(self) -> None:
        times, Arrivals.times = Arrivals.times, {}
        moments = sorted(times.values()) or [0.0]
        body = json.dumps({"count": len(times), "first": moments[0], "last": moments[-1], "times": times}).encode()
        head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(body)
        self.transport.write(head + body)
        self.transport.close()


async def main(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Receiving, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
