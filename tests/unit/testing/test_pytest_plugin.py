"""The fixtures as users have them: in pytest runs of their own, where every warning is an error."""

from __future__ import annotations

import json
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from processes import run_python
from source import setup_list

pytest_plugins = ["pytester"]

# Such runs load the plugin by its entry point if the installation has it, else as asked for here.
ENTRY_POINT = "queuebridge = queuebridge.testing.plugin"


def run(pytester: pytest.Pytester, code: str, **more: str) -> pytest.RunResult:
    pytester.makeini("[pytest]\nfilterwarnings = error\n")
    pytester.makepyfile(code)
    for name, text in more.items():
        pytester.makepyfile(**{name: text})
    loaded = any(point.name == "queuebridge" for point in entry_points(group="pytest11"))
    return pytester.runpytest_subprocess(*([] if loaded else ["-p", "queuebridge.testing.plugin"]), timeout=50)


def test_entry_point_names_the_plugin() -> None:
    assert setup_list("options.entry_points", "pytest11") == [ENTRY_POINT]


def test_plugin_imports_no_optional_library(tmp_path: Path) -> None:
    code = "import queuebridge.testing.plugin, sys, json\nprint(json.dumps(sorted(sys.modules)))"

    loaded = set(json.loads(run_python(code, cwd=tmp_path).splitlines()[-1]))

    assert "queuebridge.testing.plugin" in loaded
    assert not loaded & {"aiohttp", "flask", "qstash", "jwt", "httpx", "click", "redis", "sqlalchemy"}
    assert not [name for name in loaded if name.startswith(("queuebridge.backends", "bridge_app"))]


def test_run_that_uses_no_fixture_starts_nothing(pytester: pytest.Pytester) -> None:
    code = """
    import sys, threading

    def test_it():
        assert "aiohttp" not in sys.modules
        assert "flask" not in sys.modules
        assert [t.name for t in threading.enumerate() if "qstash" in t.name or "queuebridge" in t.name] == []
    """

    run(pytester, code).assert_outcomes(passed=1)


def test_published_message_arrives_verified_and_is_recorded(pytester: pytest.Pytester) -> None:
    code = """
    def test_it(qstash_server, qstash_receiver):
        qstash_receiver.respond(201, body="done", headers={"X-Mine": "1"}, path="/jobs")

        qstash_server.client.message.publish(
            url=f"{qstash_receiver.url}/jobs?x=1", body="work", headers={"X-Yours": "2"}, label="l"
        )

        (request,) = qstash_receiver.wait_for(1)
        assert (request.method, request.path, request.text) == ("POST", "/jobs?x=1", "work")
        assert request.headers["x-yours"] == "2"
        qstash_server.wait_until_idle()
        (delivery,) = qstash_server.deliveries
        assert (delivery.status, delivery.response_body, delivery.labels) == (201, b"done", ("l",))
        assert (delivery.headers["x-yours"], delivery.headers["upstash-signature"]) == ("2", "REDACTED")
        assert qstash_server.find_deliveries(label="other") == []
        qstash_server.clear_deliveries()
        assert qstash_server.deliveries == []

    def test_that_each_test_has_its_own(qstash_server, qstash_receiver):
        assert qstash_server.deliveries == []
        assert qstash_receiver.requests == []
    """

    run(pytester, code).assert_outcomes(passed=2)


def test_retries_of_hours_take_no_time(pytester: pytest.Pytester) -> None:
    code = """
    from datetime import datetime, timedelta, timezone
    import pytest

    def test_it(qstash_server, qstash_receiver):
        qstash_server.stop()
        start = qstash_server.now
        qstash_receiver.respond(503, headers={"Retry-After": "7200"}, times=2)
        qstash_server.client.message.publish(url=qstash_receiver.url, body="work", delay="1h", retries=2)

        qstash_server.advance("30m")
        assert qstash_receiver.requests == []
        qstash_server.advance(timedelta(hours=4, minutes=29))
        assert len(qstash_receiver.requests) == 2
        qstash_server.advance(60)
        assert [r.headers["upstash-retried"] for r in qstash_receiver.requests] == ["0", "1", "2"]
        assert [d.time - start for d in qstash_server.deliveries] == pytest.approx([3600, 10800, 18000], abs=0.01)

        moment = datetime.fromtimestamp(start, timezone.utc) + timedelta(days=1)
        qstash_server.move_to(moment)
        assert qstash_server.now == pytest.approx(moment.timestamp(), abs=0.01)
        with pytest.raises(RuntimeError, match=r"refused that \\(400\\): the time cannot go backwards"):
            qstash_server.move_to(start)
        with pytest.raises(ValueError, match="no time zone"):
            qstash_server.move_to(datetime(2100, 1, 1))
        qstash_server.resume()
        assert qstash_server.now < qstash_server.now + 1
    """

    run(pytester, code).assert_outcomes(passed=1)


def test_faults_do_what_they_say(pytester: pytest.Pytester) -> None:
    code = """
    import time
    import pytest

    @pytest.fixture
    def publish(qstash_server, qstash_receiver):
        def publish(**options):
            url = f"{qstash_receiver.url}/x"
            qstash_server.client.message.publish(url=url, body="work", retry_delay="1000", **options)
            qstash_server.advance("1h")
            return [(d.fault, d.status) for d in qstash_server.deliveries], len(qstash_receiver.requests)
        return publish

    def test_drop(qstash_server, publish):
        qstash_server.drop_next(2, path="/x")
        assert publish() == ([("drop", None), ("drop", None), (None, 200)], 1)

    def test_lose_answer(qstash_server, publish):
        qstash_server.lose_answer_of_next()
        assert publish() == ([("lose_answer", None), (None, 200)], 2)

    def test_duplicate(qstash_server, qstash_receiver, publish):
        qstash_receiver.respond(200, times=1)
        qstash_receiver.respond(500, times=1)
        qstash_server.duplicate_next()
        assert publish() == ([("duplicate", 200), ("duplicate", 500)], 2)
        assert len({r.headers["upstash-message-id"] for r in qstash_receiver.requests}) == 1

    def test_error(qstash_server, publish):
        qstash_server.fail_next(status=429, headers={"Retry-After": "60"}, body="slow down")
        assert publish() == ([("error", 429), (None, 200)], 1)
        first, second = qstash_server.deliveries
        assert first.response_body == b"slow down"
        assert second.time - first.time == pytest.approx(60, abs=0.01)

    def test_delay(qstash_server, publish):
        qstash_server.delay_next(seconds=0.3)
        begin = time.monotonic()
        assert publish() == ([("delay", 200)], 1)
        assert time.monotonic() - begin >= 0.3

    def test_delay_beyond_the_timeout(qstash_server, publish):
        qstash_server.delay_next(seconds=60)
        assert publish(timeout=1) == ([("delay", None), (None, 200)], 1)
        assert qstash_server.deliveries[0].error == "no answer within 1 s"

    def test_filters_and_clear(qstash_server, publish):
        qstash_server.drop_next(label="other")
        qstash_server.drop_next(host="example.com")
        assert publish(label="mine") == ([(None, 200)], 1)
        qstash_server.clear_faults()
        assert publish(label="other") == ([(None, 200)] * 2, 2)
    """

    run(pytester, code).assert_outcomes(passed=7)


def test_what_is_not_signed_for_the_receiver_is_refused_and_kept_apart(pytester: pytest.Pytester) -> None:
    code = """
    import urllib.error, urllib.request
    import pytest

    def test_unsigned(qstash_receiver):
        with pytest.raises(urllib.error.HTTPError, match="401") as caught:
            urllib.request.urlopen(f"{qstash_receiver.url}/x", data=b"1")
        caught.value.close()
        assert qstash_receiver.requests == []
        assert "no Upstash-Signature header" in qstash_receiver.refused[0].problem
        with pytest.raises(AssertionError, match="0 of 1 requests arrived within 0.01 s.*no Upstash-Signature"):
            qstash_receiver.wait_for(1, timeout=0.01)

    def test_keys_of_another_user(qstash_server, qstash_receiver):
        qstash_receiver.signing_keys = ("sig_" + "a" * 32, "sig_" + "b" * 32)
        qstash_server.client.message.publish(url=qstash_receiver.url, retries=0)
        qstash_server.wait_until_idle()
        assert qstash_receiver.requests == []
        assert "fits neither" in qstash_receiver.refused[0].problem
        assert qstash_server.deliveries[0].status == 401

    @pytest.mark.parametrize(("status", "times"), [(100, None), (600, None), (200, 0)])
    def test_impossible_answer(qstash_receiver, status, times):
        with pytest.raises(ValueError):
            qstash_receiver.respond(status, times=times)

    def test_answers_in_their_order(qstash_server, qstash_receiver):
        qstash_receiver.respond(404)
        qstash_receiver.respond(204, path="/other")
        qstash_receiver.respond(302, times=1, headers={"Location": "/other"})
        for path in ("x", "x", "other"):
            qstash_server.client.message.publish(url=f"{qstash_receiver.url}/{path}", retries=0, method="PUT")
            qstash_server.wait_until_idle()
        assert [d.status for d in qstash_server.deliveries] == [302, 404, 204]
        qstash_receiver.clear()
        qstash_server.client.message.publish(url=qstash_receiver.url, body={"large": "x" * 2_000_000})
        assert len(qstash_receiver.wait_for(1)[0].body) > 2_000_000
    """
    code = code.replace("body={", "body=__import__('json').dumps({").replace("2_000_000})", "2_000_000}))", 1)

    run(pytester, code).assert_outcomes(passed=6)


def test_server_runs_with_the_settings_of_a_project(pytester: pytest.Pytester) -> None:
    conftest = """
    import pytest

    @pytest.fixture
    def qstash_server_settings(qstash_receiver, tmp_path):
        hosts = {"api.example.com": qstash_receiver.url}
        return {"resolve": hosts, "db": tmp_path / "db", "time_scale": 1000}
    """
    code = """
    def test_it(qstash_server, qstash_receiver, tmp_path):
        url = "https://api.example.com/jobs?x=1"
        qstash_receiver.respond(500, times=1)
        qstash_server.client.message.publish(url=url, callback="https://api.example.com/done")
        requests = qstash_receiver.wait_for(4)
        assert sorted(r.path for r in requests) == ["/done", "/done", "/jobs?x=1", "/jobs?x=1"]
        assert (tmp_path / "db").exists()
    """

    run(pytester, code, conftest=conftest).assert_outcomes(passed=1)


def test_tasks_run_in_the_receiver_of_queuebridge(pytester: pytest.Pytester) -> None:
    code = """
    from datetime import date
    import pytest
    from queuebridge import current_job, task

    sent = []

    @task(retries=2, backoff=[3600])
    def send_report(user_id: int, day: date) -> None:
        if current_job().attempt < 3:
            raise ConnectionError("not yet")
        sent.append((user_id, day))
        note.delay("after")

    @task
    def note(text: str) -> None:
        sent.append(text)

    def test_it(qstash_server, queuebridge_receiver):
        sent.clear()
        send_report.delay(7, day=date(2026, 1, 31))
        qstash_server.wait_until_idle()
        assert sent == []
        qstash_server.advance("3h")
        assert sent == [(7, date(2026, 1, 31)), "after"]
        assert queuebridge_receiver.bridge.backend.name == "qstash"

    def test_duplicate_delivery_without_a_ledger_runs_twice(qstash_server, queuebridge_receiver):
        sent.clear()
        qstash_server.duplicate_next()
        note.delay("x")
        qstash_server.wait_until_idle()
        assert sent == ["x", "x"]

    class TestWithALedger:
        @pytest.fixture
        def queuebridge_receiver_settings(self):
            return {"QUEUEBRIDGE_LEDGER": "memory://plugin-test"}

        def test_duplicate_delivery_runs_once(self, qstash_server, queuebridge_receiver):
            sent.clear()
            qstash_server.duplicate_next()
            note.delay("x")
            qstash_server.wait_until_idle()
            assert sent == ["x"]
            assert len(qstash_server.deliveries) == 2
    """

    run(pytester, code).assert_outcomes(passed=3)
