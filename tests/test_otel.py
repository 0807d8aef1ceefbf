"""Calls as spans of OpenTelemetry."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode, Tracer

import jobs
from aiopool import AioPool, WorkerDied
from aiopool.contrib.otel import Tracing

pytestmark = pytest.mark.both_loops


class Traces:
    """Where spans are exported to."""

    def __init__(self) -> None:
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.exporter = InMemorySpanExporter()
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))

    @property
    def tracer(self) -> Tracer:
        """The user's own."""
        return self.provider.get_tracer("test")

    @property
    def spans(self) -> list[ReadableSpan]:
        """Those of calls, in the order of their ends."""
        return [span for span in self.exporter.get_finished_spans() if span.instrumentation_scope.name == "aiopool"]


@pytest.fixture
def traces() -> Iterator[Traces]:
    """What the test's pool exports."""
    made = Traces()
    yield made
    made.provider.shutdown()


def ids(span: ReadableSpan) -> tuple[str, str]:
    """Return the ids of a span's trace, and its own."""
    return f"{span.context.trace_id:x}", f"{span.context.span_id:x}"


async def test_links_go_right_across_the_process_boundary(traces: Traces, start_method: str) -> None:
    """From the caller's span to the call's, and from that to the one that the function makes."""
    async with AioPool(1, context=start_method, hooks=[Tracing(traces.provider)]) as pool:
        with traces.tracer.start_as_current_span("request") as request:
            trace, parent, inner = await pool.apply(jobs.make_span)
    (span,) = traces.spans
    assert isinstance(request, ReadableSpan)
    assert span.parent == request.context
    assert (trace, parent) == ids(span)
    assert inner not in ids(span)


async def test_a_span_says_how_long_the_call_waited_and_ran(traces: Traces) -> None:
    """And where."""
    async with AioPool(1, hooks=[Tracing(traces.provider)]) as pool:
        pid = await pool.apply(jobs.pid_of)
    (span,) = traces.spans
    assert span.name == "pid_of"
    assert span.attributes is not None
    assert span.attributes["aiopool.end"] == "done"
    assert isinstance(span.attributes["aiopool.queue_seconds"], float)
    assert isinstance(span.attributes["aiopool.run_seconds"], float)
    assert span.status.status_code is StatusCode.UNSET
    (event,) = span.events
    assert event.attributes is not None
    assert event.attributes["aiopool.worker.pid"] == pid
    assert event.attributes["aiopool.worker.seat"] == 0


async def test_calls_that_fail_are_errors(traces: Traces) -> None:
    """With the reason, where the pool has it; one that is cancelled ends, too."""
    async with AioPool(1, hooks=[Tracing(traces.provider)]) as pool:
        with pytest.raises(ValueError, match="3"):
            await pool.apply(jobs.fail_at, (3,))
        with pytest.raises(WorkerDied) as died:
            await pool.apply(jobs.kill_self)
        pool.apply_async(jobs.square, (2,)).cancel()
    failed, dead, cancelled = traces.spans
    assert {span.status.status_code for span in traces.spans} == {StatusCode.ERROR}
    assert failed.status.description == "failed"
    assert dead.status.description == str(died.value)
    assert [event.name for event in dead.events] == ["sent to a worker", "exception"]
    assert cancelled.status.description == "cancelled"


async def test_each_chunk_has_a_span_of_its_own(traces: Traces) -> None:
    """All of them children of whoever began the map or the imap, whoever takes the values."""
    async with AioPool(2, hooks=[Tracing(traces.provider)]) as pool:
        with traces.tracer.start_as_current_span("request") as request:
            made = await pool.map(jobs.make_span, range(3), chunksize=1)
            stream = pool.imap(jobs.make_span, range(4), buffersize=1)
        with traces.tracer.start_as_current_span("other"):
            made += [each async for each in stream]
    assert isinstance(request, ReadableSpan)
    assert [span.parent for span in traces.spans] == [request.context] * 7
    assert {(trace, parent) for trace, parent, _ in made} == {ids(span) for span in traces.spans}


async def test_concurrent_calls_do_not_mix(traces: Traces) -> None:
    """Each task has its own span, in one worker."""

    async def ask(number: int) -> None:
        with traces.tracer.start_as_current_span(f"request {number}") as request:
            assert isinstance(request, ReadableSpan)
            for _ in range(3):
                trace, parent, _ = await pool.apply(jobs.make_span)
                assert trace == ids(request)[0]
                assert parent in {ids(span)[1] for span in traces.spans if span.parent == request.context}

    async with AioPool(1, hooks=[Tracing(traces.provider)]) as pool:
        await asyncio.gather(*map(ask, range(4)))
        assert await pool.apply(jobs.present_span) != ("0", "0")
    async with AioPool(1) as pool:
        assert await pool.apply(jobs.present_span) == ("0", "0")
