"""What a user would write without queuebridge: a Flask view with the SDK's own verification."""

from __future__ import annotations

import json
import os

from benchmark_tasks import add_numbers
from flask import Flask, request
from qstash import Receiver

app = Flask(__name__)
receiver = Receiver(os.environ["QSTASH_CURRENT_SIGNING_KEY"], os.environ["QSTASH_NEXT_SIGNING_KEY"])
url = os.environ["QUEUEBRIDGE_PUBLIC_URL"] + "/queuebridge/deliver"


@app.post("/queuebridge/deliver")
def deliver() -> tuple[dict[str, object], int]:
    receiver.verify(signature=request.headers["Upstash-Signature"], body=request.get_data(as_text=True), url=url)
    job = json.loads(request.get_data())
    return {"status": "done", "result": add_numbers.function(*job.get("args", ()), **job.get("kwargs", {}))}, 200
