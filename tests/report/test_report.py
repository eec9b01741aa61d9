"""What a report says about a run, as values, JSON and trace events."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import torch
from torch import Tensor

import torch_piecewise as tp
from tests.graphs import Stack
from torch_piecewise.cudagraphs.graph_events import CaptureRefused, SizeCaptured
from torch_piecewise.errors import ConfigError
from torch_piecewise.events import PhaseEnded, PieceCompiled, StoreLookup
from torch_piecewise.events.recorder import Recorded, Recorder
from torch_piecewise.program import Sizes
from torch_piecewise.ranges import Range
from torch_piecewise.report import as_json, from_json, show
from torch_piecewise.report.collect import letter
from torch_piecewise.report.facts import Step
from torch_piecewise.report.flow import folded
from torch_piecewise.report.timeline import lookups_of, moments_of, spans_of
from torch_piecewise.report.use import use_of
from torch_piecewise.testing import RecordingCompiler

pytestmark = pytest.mark.usefixtures("no_grad")


def test_the_straight_line_is_told_in_order_with_its_cuts(handle: Any) -> None:
    (program,) = handle.report().programs
    assert [step.label for step in program.steps] == [
        "A",
        *["tests::attention", "B"] * 3,
        "tests::attention",
        "C",
    ]
    assert [(len(fold.steps), fold.times) for fold in program.folds] == [(1, 1), (2, 3), (2, 1)]


def test_a_distinct_piece_says_where_it_is_used_and_what_it_is_made_of(handle: Any) -> None:
    second = handle.report().programs[0].kinds[1]
    assert (second.letter, second.pieces) == ("B", ("submod_2", "submod_4", "submod_6"))
    assert second.title == "linear · add · rms_norm"
    linear = second.ops[0]
    assert (linear.target, linear.result.partition("[")[0]) == ("torch.linear", "float32")
    assert linear.where.startswith("tests/graphs.py:") or "/tests/graphs.py:" in linear.where
    assert linear.where.endswith("(return x + self.out(result))")
    assert any(line.startswith("x: float32[") for line in second.inputs)


def test_each_compiled_range_is_told_with_its_times(handle: Any) -> None:
    for kind in handle.report().programs[0].kinds:
        assert [one.range for one in kind.built] == ["[1, 1]", "[1, 8]", "[9, inf]"]
        assert all(one.origin == "compiled" and one.compile_seconds is not None for one in kind.built)
        assert [(one.range, one.size) for one in kind.timed] == [("[1, 8]", "3")]


class Guarding(RecordingCompiler):
    """Its code does not hold for a size of 7."""

    def compile(self, piece: Any, range: Any, options: Any) -> Any:
        return dataclasses.replace(super().compile(piece, range, options), guards=("Ne(size0, 7)",))


def test_where_code_does_not_hold_is_told_by_the_arguments_names() -> None:
    settings = {"splitting_ops": ["tests::attention"], "dynamic_arg_dims": {"ids": 0}, "disable_cache": True}
    model = tp.compile(Stack(2).eval(), backend=Guarding(), **settings)
    model(torch.randint(0, 50, (5,)))
    kinds = tp.program_of(model).report().programs[0].kinds
    assert {guard for kind in kinds for one in kind.built for guard in one.guards} == {"Ne(ids.size(0), 7)"}


def test_calls_are_counted_by_the_range_that_served_them(handle: Any) -> None:
    use = {one.range: one for one in handle.report().programs[0].use}
    assert {text: (one.calls, one.sizes) for text, one in use.items()} == {
        "[1, 8]": (2, 6),
        "[9, inf]": (1, 100),
        "[1, 1]": (1, 1),
    }


def test_calls_are_not_counted_unless_asked_for_and_then_from_that_moment() -> None:
    model = tp.compile(Stack(1).eval(), backend="eager", dynamic_arg_dims={"ids": 0}, disable_cache=True)
    model(torch.randint(0, 50, (3,)))
    handle = tp.program_of(model)
    assert handle.report().programs[0].use is None
    handle.count_calls()
    model(torch.randint(0, 50, (5,)))
    (use,) = handle.report().programs[0].use
    assert (use.calls, use.sizes) == (1, 5)


def test_padding_is_what_the_captured_sizes_add() -> None:
    use = use_of(Sizes("s0", (Range(1, 64),)), {3: 2, 8: 1, 60: 1}, captured=(4, 8, 16))
    assert [(one.calls, one.sizes, one.padded) for one in use] == [(4, 74, 76)]
    assert use[0].waste == pytest.approx(1 - 74 / 76)


def test_the_json_document_is_the_report_and_can_be_read_back(handle: Any, tmp_path: Any) -> None:
    report = handle.report(tmp_path / "run.json")
    document = json.loads((tmp_path / "run.json").read_text())
    assert from_json(document) == report
    assert json.loads(json.dumps(as_json(from_json(document)))) == document


def test_the_trace_events_are_what_chrome_and_perfetto_read(handle: Any, tmp_path: Any) -> None:
    handle.report(tmp_path / "run.perfetto.json")
    events = json.loads((tmp_path / "run.perfetto.json").read_text())["traceEvents"]
    spans = [event for event in events if event["ph"] == "X"]
    assert {"trace", "split", "fingerprint", "stitch", "compile"} <= {event["name"] for event in spans}
    assert all(event["ts"] >= 0 and event["dur"] >= 0 for event in spans)
    threads = {event["tid"] for event in events if event["ph"] == "M" and event["name"] == "thread_name"}
    assert {event["tid"] for event in spans} == threads


def test_an_unknown_suffix_is_an_error_that_names_those_there_are(handle: Any, tmp_path: Any) -> None:
    with pytest.raises(ConfigError, match=r"ends in \.html, \.json or \.perfetto\.json\n  got: 'report.pdf'"):
        handle.report(tmp_path / "report.pdf")


@pytest.mark.parametrize(
    ("document", "got"), [([], "list"), ({"version": 99}, "version 99"), ({"version": 1}, "KeyError")]
)
def test_what_is_no_recorded_run_is_refused(document: Any, got: str) -> None:
    with pytest.raises(ConfigError, match=f"got: {got}"):
        from_json(document)


def steps(labels: str) -> list[Step]:
    return [Step(name=f"submod_{n}", letter=label) for n, label in enumerate(labels)]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ("", []),
        ("A", [("A", 1)]),
        ("AxBxBxC", [("A", 1), ("xB", 2), ("xC", 1)]),
        ("ABABAB", [("AB", 3)]),
        ("ABCDEF", [("ABCDEF", 1)]),
        ("AxBxCxBxCxD", [("A", 1), ("xBxC", 2), ("xD", 1)]),
    ],
)
def test_what_repeats_is_written_once(labels: str, expected: list[tuple[str, int]]) -> None:
    found = [("".join(step.letter for step in fold.steps), fold.times) for fold in folded(steps(labels))]
    assert found == expected


def test_conditions_are_told_by_the_arguments_names() -> None:
    def add(x: Tensor, y: Tensor) -> Tensor:
        return x + y

    compiled = tp.compile(add, backend="eager", dynamic_arg_dims={"x": 0, "y": 0}, disable_cache=True)
    compiled(torch.randn(5), torch.randn(5))
    (program,) = tp.program_of(compiled).report().programs
    (condition,) = program.relations
    assert condition in {"Eq(x.size(0), y.size(0))", "Eq(y.size(0), x.size(0))"}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("L['ids'].size()[0]", "ids.size(0)"),
        ("L['kwargs']['input_ids'].size()[1]", "input_ids.size(1)"),
        ("L['kwargs']['a'].size()[1] + L['b'].size()[0]", "a.size(1) + b.size(0)"),
        ("args[3].size(1)", "args[3].size(1)"),
    ],
)
def test_a_size_is_told_by_the_arguments_name(text: str, shown: str) -> None:
    assert show.reader(text) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Eq(1, ids.size(1))", "ids.size(1) = 1"),
        ("Ne(ids.size(1), 1)", "ids.size(1) ≠ 1"),
        ("Eq(Max(1, x.size(0)), y.size(0))", "Max(1, x.size(0)) = y.size(0)"),
        ("ids.size(1) >= 1", "ids.size(1) >= 1"),
        ("Eq(a, b) & Eq(c, d)", "Eq(a, b) & Eq(c, d)"),
        ("Eq(a)", "Eq(a)"),
    ],
)
def test_an_equality_is_written_as_people_write_it(text: str, shown: str) -> None:
    assert show.condition(text) == shown


def test_an_equality_is_told_once() -> None:
    texts = ["Eq(a, b)", "Eq(b, a)", "Ne(a, 1)", "Eq(b, c)"]
    assert show.conditions(texts) == ["a = b", "a ≠ 1", "b = c"]


def test_letters_go_on_after_z() -> None:
    assert [letter(n) for n in (0, 25, 26, 27, 701, 702)] == ["A", "Z", "AA", "AB", "ZZ", "AAA"]


def test_compiles_at_the_same_time_stand_in_rows_of_their_own() -> None:
    events = [
        PieceCompiled(piece=name, range=Range(1, 8), compiler="c", seconds=seconds, at=end)
        for name, seconds, end in (("a", 2.0, 12.0), ("b", 1.0, 12.5), ("c", 1.0, 13.5))
    ]
    spans = spans_of([Recorded(event, 0) for event in events])
    assert [(span.name, span.row, span.start) for span in spans] == [
        ("a [1, 8]", 0, 0.0),
        ("b [1, 8]", 1, 1.5),
        ("c [1, 8]", 0, 2.5),
    ]


def test_captures_have_a_lane_of_their_own_and_refusals_are_told() -> None:
    piecewise, batch = tp.CUDAGraphMode.PIECEWISE, tp.BatchDescriptor(8)
    events = [
        SizeCaptured(mode=piecewise, descriptor=batch, graphs=4, seconds=0.5, memory=0, at=2.0),
        CaptureRefused(mode=piecewise, descriptor=batch, reason="over the budget", at=3.0),
    ]
    recorded = [Recorded(event, 0) for event in events]
    (span,) = spans_of(recorded)
    assert (span.lane, span.name, span.what, span.seconds) == ("capture", "size 8", "PIECEWISE", 0.5)
    (moment,) = moments_of(recorded)
    assert (moment.what, moment.text, moment.at) == ("not captured", "size 8: over the budget", 1.5)


def test_a_miss_that_was_a_hit_in_the_end_is_a_hit() -> None:
    asked = [StoreLookup(what="a", hit=False, reason="no"), StoreLookup(what="a", hit=True)]
    asked.append(StoreLookup(what="b", hit=False, reason="torn"))
    lookups = lookups_of([Recorded(event, 0) for event in asked])
    assert (lookups.hits, lookups.misses) == (("a",), (("b", "torn"),))


def test_a_recorder_keeps_the_newest_events() -> None:
    recorder = Recorder(limit=2)
    for seconds in (1.0, 2.0, 3.0):
        recorder(PhaseEnded(phase="trace", seconds=seconds))
    assert [one.event.seconds for one in recorder.recorded()] == [2.0, 3.0]
