"""Whatever a client sends, the embedded server answers with something other than 500, and lives on."""

from __future__ import annotations

import json
import logging
import string
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPResponse
from urllib.parse import quote, urlsplit

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from queuebridge.backends.qstash.devserver import ServerSettings, running_server
from queuebridge.backends.qstash.protocol import DEFAULT_DEV_USER

# Nothing listens on the discard port, so that deliveries fail at once.
NOWHERE = "http://127.0.0.1:9"

names = st.sampled_from(["a", "b.c", "q-1", "*", "", "..", "%2F", "ü", "a:b", "x" * 300]) | st.text(max_size=12)
urls = st.sampled_from(
    [NOWHERE, f"{NOWHERE}/x?y=1", "https://127.0.0.1:9//a", "http://", "http://[::1", "http://h:99999", "api/llm"]
)
numbers = st.sampled_from(["0", "1", "-1", "1.5", "1e9", "99999999999999999999", "", "NaN", "٣"])
durations = st.sampled_from(["1s", "10d", "1h30m", "5", "1y", "-1s", "999999999999d", "1s1s", ""])
anything = names | urls | numbers | durations | st.sampled_from(["true", "false", "[]", "body,header[X]", "* * * * *"])
EXPRESSIONS = ["1000", "pow(2, retried)", "exp(", "1/0", "retried" * 50, "(" * 200, "9**9**9"]
FLOWS = ["rate=1", "parallelism=2, rate=3, period=1m", "rate=0", "rate=x", "=,="]
CRONS = [
    *("* * * * *", "0 0 31 2 *", "CRON_TZ=Europe/Berlin 0 2 * * *", "CRON_TZ=Mars/X * * * * *"),
    *("@hourly", "@every 1s", "", "* * *"),
]

HEADERS = {
    "Upstash-Method": st.sampled_from(["GET", "post", "BREW", ""]),
    "Upstash-Delay": durations,
    "Upstash-Not-Before": numbers,
    "Upstash-Retries": numbers,
    "Upstash-Retry-Delay": st.sampled_from(EXPRESSIONS),
    "Upstash-Timeout": durations,
    "Upstash-Callback": urls,
    "Upstash-Callback-Retries": numbers,
    "Upstash-Callback-Forward-X": names,
    "Upstash-Failure-Callback": urls,
    "Upstash-Deduplication-Id": names,
    "Upstash-Content-Based-Deduplication": st.sampled_from(["true", "false", "yes"]),
    "Upstash-Flow-Control-Key": names,
    "Upstash-Flow-Control-Value": st.sampled_from(FLOWS),
    "Upstash-Label": names,
    "Upstash-Redact-Fields": anything,
    "Upstash-Header-Forward": st.sampled_from(["true", "false", "?"]),
    "Upstash-Forward-X-A": names,
    "Upstash-Forward-Content-Length": numbers,
    "Upstash-Cron": st.sampled_from(CRONS),
    "Upstash-Schedule-Id": names,
    "Upstash-Queue-Name": names,
    "Upstash-Workflow-RunId": names,
    "Upstash-Workflow-Init": st.sampled_from(["true", "false", "perhaps"]),
    "Upstash-Workflow-Url": urls,
    "Upstash-Workflow-CallType": st.sampled_from(["step", "toCallback", "fromCallback", "failureCall", "?"]),
    "Upstash-Feature-Set": st.sampled_from(["LazyFetch,InitialBody", "WF_NoDelete,InitialBody", ",,"]),
    "Content-Type": st.sampled_from(["application/json", "text/plain; charset=utf-8", ""]),
}
PARAMETERS = [
    *("messageIds", "messageId", "dlqIds", "url", "host", "path", "label", "queueName", "flowControlKey", "scheduleId"),
    *("topicName", "callerIp", "callerIP", "fromDate", "toDate", "count", "cursor", "order", "state", "responseStatus"),
    *("search", "parallelism", "rate", "period", "cancel", "upstash-delay", "upstash-retries", "groupBy", "unknown"),
]
RESOURCES = [
    *("messages", "messages/{name}", "dlq", "dlq/{name}", "dlq/retry", "dlq/retry/{name}", "events", "logs"),
    *("queues", "queues/{name}", "queues/{name}/pause", "queues/{name}/resume", "schedules"),
    *("schedules/{name}", "schedules/{url}", "schedules/{name}/pause", "schedules/{name}/resume", "topics"),
    *("topics/{name}", "topics/{name}/endpoints", "keys", "keys/rotate", "flowControl", "flowControl/{name}"),
    *("flowControl/{name}/pause", "flowControl/{name}/pin", "flowControl/{name}/unpin"),
    *("flowControl/{name}/resetRate", "globalParallelism", "publish/{url}", "publish/{name}"),
    *("enqueue/{name}/{url}", "batch", "workflows/runs/{name}", "workflows/events", "wait/{name}"),
    *("notify/{name}", "{name}"),
]

FIELDS = [
    *("queueName", "parallelism", "paused", "endpoints", "url", "name"),
    *("messageIds", "dlqIds", "headers", "destination"),
]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | anything,
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(FIELDS) | names,
        inner,
        max_size=4,
    ),
    max_leaves=8,
)
items = st.fixed_dictionaries(
    {"destination": urls | names},
    optional={
        "headers": st.dictionaries(st.sampled_from(list(HEADERS)), anything, max_size=3) | json_values,
        "body": st.text(max_size=20) | json_values,
        "queue": names | json_values,
    },
)
bodies = (
    st.binary(max_size=60)
    | json_values.map(lambda value: json.dumps(value).encode())
    | st.lists(items, max_size=3).map(lambda value: json.dumps(value).encode())
    | st.sampled_from([b"{", b"[" * 100_000, b'{"messageIds": []}', b'{"queueName": "q", "parallelism": 1e400}'])
)


@dataclass(frozen=True)
class Request:
    """One request."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes


@st.composite
def requests(draw: st.DrawFn) -> Request:
    """Make a request that is right in most parts, so that it gets far."""
    path = draw(st.sampled_from(RESOURCES))
    path = path.replace("{name}", quote(draw(names), safe=draw(st.sampled_from(["", "/%"])), errors="replace"))
    path = path.replace("{url}", draw(urls))
    query = "&".join(
        f"{name}={quote(value, errors='replace')}"
        for name, value in draw(st.lists(st.tuples(st.sampled_from(PARAMETERS), anything), max_size=3))
    )
    chosen = draw(st.lists(st.sampled_from(list(HEADERS)), max_size=5, unique=True))
    headers = {name: draw(HEADERS[name]).encode("utf-8", "replace").decode("latin-1") for name in chosen}
    headers = {name: "".join(c for c in value if c not in "\r\n\0" and c >= " ") for name, value in headers.items()}
    target = f"/v2/{path}" + (f"?{query}" if query else "")
    target = "".join(character for character in target if character in string.printable and not character.isspace())
    return Request(draw(st.sampled_from(["GET", "POST", "PUT", "PATCH", "DELETE"])), target, headers, draw(bodies))


@pytest.fixture(scope="module")
def base_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server with a database: what is accepted must be storable, too."""
    path = tmp_path_factory.mktemp("fuzz") / "db"
    with running_server(ServerSettings(port=0, db_path=path, durable=False)) as url:
        yield url
    # What was stored can be read.
    with running_server(ServerSettings(port=0, db_path=path, durable=False)):
        pass


def send(base_url: str, request: Request) -> tuple[HTTPResponse, bytes]:
    connection = HTTPConnection(urlsplit(base_url).netloc, timeout=20)
    try:
        connection.putrequest(request.method, request.target, skip_accept_encoding=True)
        headers = {"Authorization": f"Bearer {DEFAULT_DEV_USER.token}", **request.headers}
        for name, value in {**headers, "Content-Length": str(len(request.body))}.items():
            connection.putheader(name, value.encode("latin-1"))
        connection.endheaders(request.body)
        response = connection.getresponse()
        return response, response.read()
    finally:
        connection.close()


@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(request=requests())
def test_no_request_is_answered_with_a_server_error(
    request: Request, base_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    response, body = send(base_url, request)

    assert response.status < 500, body
    if response.status >= 400:
        assert response.headers["Content-Type"].startswith(("application/json", "text/plain")), body
        if response.headers["Content-Type"].startswith("application/json"):
            assert isinstance(json.loads(body)["error"], str)
    problems = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert problems == []
