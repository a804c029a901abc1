"""A server that answers every QStash publish at once, or after a given time.

python answering_server.py PORT [MILLISECONDS]
"""

from __future__ import annotations

import asyncio
import sys

DELAY_SECONDS = float(sys.argv[2]) / 1000 if len(sys.argv) > 2 else 0.0
ONE = b'{"messageId":"msg_benchmark"}'


class Answering(asyncio.Protocol):
    """Reads requests just far enough to know where they end."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.received = b""

    def data_received(self, data: bytes) -> None:
        self.received += data
        while (end := self.received.find(b"\r\n\r\n")) >= 0:
            head = self.received[:end]
            length = 0
            for line in head.lower().split(b"\r\n"):
                if line.startswith(b"content-length:"):
                    length = int(line.partition(b":")[2])
            total = end + 4 + length
            if len(self.received) < total:
                return
            body = self.received[end + 4 : total]
            self.received = self.received[total:]
            count = body.count(b'"destination"') if head.startswith(b"POST /v2/batch") else 0
            answer = b"[" + b",".join([ONE] * count) + b"]" if count else ONE
            whole = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (
                len(answer),
                answer,
            )
            if DELAY_SECONDS:
                asyncio.get_running_loop().call_later(DELAY_SECONDS, self.answer, whole)
            else:
                self.answer(whole)

    def answer(self, whole: bytes) -> None:
        assert isinstance(self.transport, asyncio.WriteTransport)
        self.transport.write(whole)


async def main(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Answering, "127.0.0.1", port)
    print("ready", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
