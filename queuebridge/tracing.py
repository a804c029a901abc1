"""Carry the W3C trace context from the producer to the execution, if the program uses OpenTelemetry."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

_API = "opentelemetry.trace"


def current_trace() -> dict[str, str]:
    """Return `traceparent` and `tracestate` of the active span; empty without OpenTelemetry."""
    # A program that traces has imported the API already; for any other one this costs a dictionary look-up.
    api = sys.modules.get(_API)
    # A library that could be traced imports it too: without an active span there is nothing to carry.
    if api is None or not api.get_current_span().get_span_context().is_valid:
        return {}
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return carrier


@contextmanager
def continued(trace: Mapping[str, str], task: str) -> Iterator[None]:
    """Execute the block in a span that continues the producer's trace; without one, do nothing."""
    if not trace or _API not in sys.modules:
        yield
        return
    from opentelemetry import trace as otel
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    parent = TraceContextTextMapPropagator().extract(trace)
    tracer = otel.get_tracer("queuebridge")
    with tracer.start_as_current_span(f"run {task}", context=parent, kind=otel.SpanKind.CONSUMER):
        yield
