"""A report as Chrome trace events, which Perfetto and ``chrome://tracing`` show."""

from __future__ import annotations

from typing import Any

from torch_piecewise.report.facts import Report

_PROCESS = 1


def trace_events(report: Report) -> dict[str, Any]:
    """The trace document: one thread for each row of the timeline; times in microseconds."""
    rows = sorted({(span.lane, span.row) for span in report.spans}, key=_order)
    thread = {row: number for number, row in enumerate(rows, 1)}
    events: list[dict[str, Any]] = [_named("process_name", 0, report.title)]
    events += [_named("thread_name", number, f"{lane} {row + 1}") for (lane, row), number in thread.items()]
    events += [
        {
            "ph": "X",
            "name": span.name,
            "cat": span.lane,
            "pid": _PROCESS,
            "tid": thread[span.lane, span.row],
            "ts": span.start * 1e6,
            "dur": span.seconds * 1e6,
            "args": {"what": span.what, "failed": span.failed},
        }
        for span in report.spans
    ]
    events += [
        {
            "ph": "i",
            "s": "p",
            "name": moment.what,
            "cat": "moments",
            "pid": _PROCESS,
            "tid": 0,
            "ts": moment.at * 1e6,
            "args": {"text": moment.text},
        }
        for moment in report.moments
    ]
    return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": dict(report.versions)}


def _order(row: tuple[str, int]) -> tuple[int, int]:
    return ("phases", "compile", "load", "capture").index(row[0]), row[1]


def _named(what: str, thread: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": what, "pid": _PROCESS, "tid": thread, "args": {"name": name}}
