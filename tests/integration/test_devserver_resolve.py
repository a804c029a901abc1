"""`queuebridge devserver --resolve`: what is meant for a public host arrives at a local one, signed for the public."""

from __future__ import annotations

import sys

from processes import Spawner
from qstash import QStash, Receiver

from queuebridge.backends.qstash.protocol import DEFAULT_DEV_USER as USER
from queuebridge.testing import QStashReceiver


def test_message_and_its_callback_arrive_locally_and_are_signed_for_the_public_url(
    spawn: Spawner, qstash_receiver: QStashReceiver
) -> None:
    local = qstash_receiver.url
    server = spawn(
        [
            *(sys.executable, "-m", "queuebridge", "devserver", "--port", "0", "--memory"),
            *("--resolve", f"api.example.com={local}", "--resolve", f"calls.example.com:8443={local}/base"),
        ],
        name="devserver",
    )
    client = QStash(USER.token, base_url=server.wait_for_line(r"running at (http://[^,\s]+)").group(1), retry=False)
    url = "https://api.example.com/jobs/a%2Fb?x=1"
    callback = "https://calls.example.com:8443/done"

    client.message.publish(url=url, body="work", callback=callback)
    (job,) = qstash_receiver.wait_for(1)
    # It verifies the path that it sees, and so refuses what comes with another one put before it.
    server.wait_until(lambda: qstash_receiver.refused, what="the callback")
    call = qstash_receiver.refused[0]
    client.http._client.close()

    official = Receiver(current_signing_key=USER.current_signing_key, next_signing_key=USER.next_signing_key)
    assert (job.path, job.headers["host"], job.text) == ("/jobs/a%2Fb?x=1", "api.example.com", "work")
    official.verify(signature=job.headers["upstash-signature"], body="work", url=url)
    assert (call.path, call.headers["host"]) == ("/base/done", "calls.example.com:8443")
    official.verify(signature=call.headers["upstash-signature"], body=call.text, url=callback)
