"""`queuebridge devserver --resolve`: what is meant for a public host arrives at a local one, signed for the public."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from queue import Queue
from typing import Any

import pytest
from processes import Spawner
from qstash import QStash, Receiver

from queuebridge.backends.qstash.protocol import DEFAULT_DEV_USER as USER

Arrivals = Queue[tuple[str, dict[str, str], bytes]]


@pytest.fixture
def local() -> Iterator[tuple[int, Arrivals]]:
    """A local receiver: its port, and what arrives."""
    arrivals: Arrivals = Queue()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            arrivals.put((self.path, {name.lower(): value for name, value in self.headers.items()}, body))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server.server_port, arrivals
    server.shutdown()
    server.server_close()
    thread.join()


def test_message_and_its_callback_arrive_locally_and_are_signed_for_the_public_url(
    spawn: Spawner, local: tuple[int, Arrivals]
) -> None:
    port, arrivals = local
    server = spawn(
        [
            *(sys.executable, "-m", "queuebridge", "devserver", "--port", "0", "--memory"),
            *("--resolve", f"api.example.com=http://127.0.0.1:{port}/base"),
            *("--resolve", f"calls.example.com:8443=http://127.0.0.1:{port}"),
        ],
        name="devserver",
    )
    client = QStash(USER.token, base_url=server.wait_for_line(r"running at (http://[^,\s]+)").group(1), retry=False)
    url = "https://api.example.com/jobs/a%2Fb?x=1"
    callback = "https://calls.example.com:8443/done"

    client.message.publish(url=url, body="work", callback=callback)
    job, call = arrivals.get(timeout=20), arrivals.get(timeout=20)
    client.http._client.close()

    receiver = Receiver(current_signing_key=USER.current_signing_key, next_signing_key=USER.next_signing_key)
    assert (job[0], job[1]["host"], job[2]) == ("/base/jobs/a%2Fb?x=1", "api.example.com", b"work")
    receiver.verify(signature=job[1]["upstash-signature"], body="work", url=url)
    assert (call[0], call[1]["host"]) == ("/done", "calls.example.com:8443")
    receiver.verify(signature=call[1]["upstash-signature"], body=call[2].decode(), url=callback)
