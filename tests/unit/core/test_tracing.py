"""The trace of the producer goes on in the executor, if the program uses OpenTelemetry."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest

from queuebridge import Bridge, TaskRegistry, task
from queuebridge.delivery import Delivery
from queuebridge.envelope import Envelope
from queuebridge.runner import Runner
from queuebridge.tracing import continued, current_trace

TRACE = {"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "tracestate": "vendor=1"}
DELIVERY = Delivery(backend="inline", message_id="m", attempt=1)


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that does not use OpenTelemetry."""
    monkeypatch.delitem(sys.modules, "opentelemetry.trace", raising=False)


@pytest.fixture
def otel() -> Any:
    """The API of OpenTelemetry, imported by the program."""
    pytest.importorskip("opentelemetry.trace", reason="opentelemetry-api is not installed")
    return sys.modules["opentelemetry.trace"]


@pytest.fixture
def spans(otel: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The spans that end during the test."""
    pytest.importorskip("opentelemetry.sdk.trace", reason="opentelemetry-sdk is not installed")
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider

    ended: list[Any] = []

    class Collect(SpanProcessor):
        def on_end(self, span: Any) -> None:
            ended.append(span)

    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(Collect())
    monkeypatch.setattr(otel, "get_tracer", provider.get_tracer)
    yield ended
    provider.shutdown()


def deliver(registry: TaskRegistry, trace: dict[str, str]) -> Any:
    envelope = Envelope(job_id="j", dispatch_id="d", task="t", queue="q", enqueued_at_ms=0, trace=trace)
    return Runner(registry).run(envelope, DELIVERY)


@pytest.mark.usefixtures("without")
def test_program_without_tracing_sends_no_trace() -> None:
    assert current_trace() == {}


@pytest.mark.usefixtures("without")
def test_program_without_tracing_does_not_load_it(bridge: Bridge, registry: TaskRegistry, recorder: Any) -> None:
    bridge.enqueue(task(name="t", registry=registry)(lambda: None))

    assert recorder.envelope.trace == {}
    assert "opentelemetry.trace" not in sys.modules


@pytest.mark.usefixtures("without")
def test_executor_without_tracing_ignores_a_trace(registry: TaskRegistry) -> None:
    task(name="t", registry=registry)(lambda: 5)

    assert deliver(registry, TRACE).result == 5
    assert "opentelemetry.trace" not in sys.modules


@pytest.mark.usefixtures("otel")
def test_outside_any_span_no_trace_is_sent() -> None:
    assert current_trace() == {}


def test_trace_of_the_active_span_is_sent(spans: list[Any], otel: Any, bridge: Bridge, recorder: Any) -> None:
    declared = task(name="t", registry=bridge.registry)(lambda: None)

    with otel.get_tracer("test").start_as_current_span("request") as span:
        bridge.enqueue(declared)

    context = span.get_span_context()
    traceparent = f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
    assert recorder.envelope.trace == {"traceparent": traceparent}


def test_job_runs_in_a_span_of_the_producers_trace(spans: list[Any], otel: Any, registry: TaskRegistry) -> None:
    inner: list[Any] = []
    task(name="t", registry=registry)(lambda: inner.append(otel.get_current_span().get_span_context()))

    deliver(registry, TRACE)

    (span,) = spans
    assert (span.name, span.kind) == ("run t", otel.SpanKind.CONSUMER)
    assert f"{span.context.trace_id:032x}" == "4bf92f3577b34da6a3ce929d0e0e4736"
    assert f"{span.parent.span_id:016x}" == "00f067aa0ba902b7"
    assert span.context.trace_state["vendor"] == "1"
    assert inner == [span.context]


def test_failure_of_the_job_is_seen_in_its_span(spans: list[Any], otel: Any, registry: TaskRegistry) -> None:
    task(name="t", registry=registry)(lambda: 1 / 0)

    deliver(registry, TRACE)

    (span,) = spans
    assert span.status.status_code is otel.StatusCode.ERROR


def test_job_without_a_trace_has_no_span(spans: list[Any], registry: TaskRegistry) -> None:
    task(name="t", registry=registry)(lambda: None)

    deliver(registry, {})

    assert spans == []


def test_trace_that_cannot_be_read_is_no_obstacle(spans: list[Any], registry: TaskRegistry) -> None:
    task(name="t", registry=registry)(lambda: 5)

    assert deliver(registry, {"traceparent": "nonsense"}).result == 5


def test_error_passes_through_the_span(spans: list[Any]) -> None:
    with pytest.raises(KeyboardInterrupt), continued(TRACE, "t"):
        raise KeyboardInterrupt

    assert len(spans) == 1
