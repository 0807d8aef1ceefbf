"""A pool's calls as spans of OpenTelemetry; needs the extra ``otel``.

    AioPool(hooks=[Tracing()])

Each call has a span, whose parent is the span in which the call was made. Spans that the function itself makes, in the
worker, have the call's span as their parent. (There they need a tracer provider of their own; see ``initializer``.)
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from importlib.metadata import version
from typing import NamedTuple

from opentelemetry import context, propagate, trace

from ..hooks import CallEnded, CallQueued, CallStarted, Event

__all__ = ["Tracing"]


class Parent(NamedTuple):
    """The call's span, as it travels."""

    headers: dict[str, str]

    @contextlib.contextmanager
    def around(self) -> Generator[None, None, None]:
        """Have it be the parent of spans that are made meanwhile."""
        token = context.attach(propagate.extract(self.headers))
        try:
            yield
        finally:
            context.detach(token)


class Tracing:
    """A hook that makes a span for each call.

    Args:
        provider: of the tracer; None means the global one.
    """

    def __init__(self, provider: trace.TracerProvider | None = None) -> None:
        self._tracer = trace.get_tracer("aiopool", version("aiopool"), provider)
        self._spans: dict[int, trace.Span] = {}

    def on_event(self, event: Event) -> None:
        """Begin, complete or end a span."""
        match event:
            case CallQueued():
                self._begin(event)
            case CallStarted():
                attributes = {"aiopool.worker.seat": event.seat, "aiopool.worker.pid": event.pid or 0}
                self._spans[event.call].add_event("sent to a worker", attributes)
            case CallEnded():
                self._end(event)
            case _:
                pass  # of workers no spans are made

    def _begin(self, event: CallQueued) -> None:
        span = self._spans[event.call] = self._tracer.start_span(event.name)
        headers: dict[str, str] = {}
        propagate.inject(headers, trace.set_span_in_context(span))
        event.company.append(Parent(headers))

    def _end(self, event: CallEnded) -> None:
        span = self._spans.pop(event.call)
        span.set_attribute("aiopool.end", event.end)
        if event.queue_seconds is not None and event.run_seconds is not None:
            span.set_attribute("aiopool.queue_seconds", event.queue_seconds)
            span.set_attribute("aiopool.run_seconds", event.run_seconds)
        if event.error is not None:
            span.record_exception(event.error)
        if event.end != "done":
            span.set_status(trace.StatusCode.ERROR, event.end if event.error is None else str(event.error))
        span.end()
