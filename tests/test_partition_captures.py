"""Static graphs around Inductor's own partitions, through tp.compile, on the recorder that needs no GPU."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import torch_piecewise as tp
from tests.static_models import CALLS, SETTINGS, Rows, table
from torch_piecewise.compilers.inductor import InductorCompiler
from torch_piecewise.cudagraphs import capture_plan
from torch_piecewise.cudagraphs.breakable import partitioned_call
from torch_piecewise.piece import TensorSpec
from torch_piecewise.testing import GraphRecorder
from torch_piecewise.torch_private.partitions import Partitioned

pytestmark = [pytest.mark.usefixtures("no_grad"), pytest.mark.inductor]


@tp.splitting_op("tests::scaled_rows", fake=lambda x, scale: torch.empty_like(x))
def scaled_rows(x: Tensor, scale: Tensor) -> Tensor:
    """A cut that returns new memory."""
    return x * scale[:, None]


class Model(torch.nn.Module):
    """Two layers, whose cuts write to output arguments; one cut that returns a tensor; a cache."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = Rows(depth=2)
        self.last = torch.nn.Linear(8, 4)
        self.register_buffer("seen", torch.zeros(8))

    def forward(self, x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        y = self.rows(x)
        self.seen.add_(1)
        z = scaled_rows(y.sin(), scale)
        return self.last(z.cos()) + scale[:, None], z


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that the model's pieces are compiled into once."""
    return tmp_path_factory.mktemp("kept")


def compiled(kept: Path, **fields: Any) -> tuple[Any, Any, Any]:
    torch.manual_seed(1)
    model = Model().eval()
    reference = copy.deepcopy(model)
    settings = {
        **SETTINGS,
        "backend": "inductor",
        "use_inductor_graph_partition": True,
        "splitting_ops": ["tests::mix_heads", "tests::scaled_rows"],
        "dynamic_arg_dims": {"x": {0: "n"}, "scale": {0: "n"}},
        "disable_cache": False,
        "cache_dir": str(kept),
        "compile_threads": 1,
        **fields,
    }
    tp.compile(model, **settings)
    return model, reference, tp.program_of(model)


def batch(n: int) -> tuple[Tensor, Tensor]:
    return torch.randn(n, 8), torch.randn(n)


def same(got: Any, expected: Any) -> None:
    torch.testing.assert_close(got, expected)


def recorder_of(handle: Any) -> Any:
    (backend,) = handle.static_graphs.backends
    return backend


def test_each_partition_is_a_graph_and_calls_are_padded_replayed_and_cut_back(kept: Path) -> None:
    model, reference, handle = compiled(kept)
    args = batch(3)
    same(model(*args), reference(*args))
    with handle.counters.expect(sizes_captured=3, static_graphs=12, graphs_captured=0):
        handle.warmup()
    model.seen.zero_()
    reference.seen.zero_()
    held = []
    with handle.counters.expect(calls_replayed=6, sizes_captured=0):
        for n in (1, 2, 3, 8, 5, 4):
            args = batch(n)
            held.append((args, model(*args)))
    for args, result in held:
        same(result, reference(*args))
    assert torch.equal(model.seen, reference.seen)
    assert (handle.stats.pieces, handle.stats.cuts) == (1, 0)
    assert (5, 8, "PIECEWISE", 1, "") in table(handle)
    recorder = recorder_of(handle)
    recorder.replays, CALLS.count = 0, 0
    model(*batch(4))
    assert (recorder.replays, CALLS.count) == (4, 2)


def test_a_captured_call_gives_the_compiled_results_bit_for_bit(kept: Path) -> None:
    model, _reference, handle = compiled(kept)
    plain, _reference, _handle = compiled(kept, cudagraph_capture_sizes=[2])
    model(*batch(4))
    handle.warmup([4])
    for _ in range(3):
        args = batch(4)
        assert all(map(torch.equal, model(*args), plain(*args)))
    assert table(handle)[-1] == (4, 4, "PIECEWISE", 3, "")


def test_a_start_from_the_store_captures_without_a_trace_or_a_compile(kept: Path) -> None:
    compiled(kept)[0](*batch(3))
    model, reference, handle = compiled(kept)
    with handle.counters.expect(graphs_captured=0, artifacts_compiled=0, artifacts_loaded=1):
        model(*batch(3))
        handle.warmup()
    args = batch(7)
    with handle.counters.expect(calls_replayed=1):
        same(model(*args), reference(*args))


def test_uniform_batches_replay_one_graph_and_others_the_partitions(kept: Path) -> None:
    model, reference, handle = compiled(kept, cudagraph_mode="full_and_piecewise")
    model(*batch(4))
    with handle.counters.expect(static_graphs=5):
        handle.warmup([4])
    for descriptor in (tp.BatchDescriptor(3), tp.BatchDescriptor(3, num_reqs=3, uniform=True)):
        with tp.forward_context(*handle.dispatch(descriptor)):
            args = batch(3)
            same(model(*args), reference(*args))
    assert [row[2] for row in table(handle) if row[0] == 3] == ["FULL", "PIECEWISE"]


def test_a_replaced_weight_is_captured_anew_and_never_read_again(kept: Path) -> None:
    model, reference, handle = compiled(kept, cudagraph_num_of_warmups=0)
    model(*batch(4))
    weight = torch.randn(4, 8)
    for one in (model, reference):
        one.last.weight = torch.nn.Parameter(weight.clone())
    for _ in range(2):
        args = batch(4)
        same(model(*args), reference(*args))
    assert handle.counters["sizes_captured"] == 2


def test_the_budget_and_the_capture_phase_are_those_of_cut_graphs(kept: Path) -> None:
    model, reference, handle = compiled(kept, cudagraph_memory_budget=1, capture_only_in_warmup=True)
    model(*batch(4))
    report = handle.warmup()
    assert report is not None
    assert (report.captured, report.refused) == (0, 3)
    args = batch(4)
    same(model(*args), reference(*args))
    assert (4, None, "NONE", 1, "no budget left") in table(handle)


def inputs_of(piece: Any, n: int) -> list[Any]:
    """Random inputs of a piece for calls of size ``n``."""
    tensors = [spec if isinstance(spec, TensorSpec) else None for spec in piece.inputs]
    sizes = [[n if isinstance(dim, str) else dim for dim in spec.size] if spec else [] for spec in tensors]
    return [torch.randn(size) if spec else n for spec, size in zip(tensors, sizes, strict=True)]


def test_torchs_own_binary_form_has_the_same_partitions(kept: Path) -> None:
    model, _reference, handle = compiled(kept)
    model(*batch(5))
    program = handle.entries[0].program
    (ready,) = program.made().values()
    payload = pickle.loads(ready.artifact.payload)
    assert payload["partitions"]
    whole = dataclasses.replace(ready.artifact, payload=pickle.dumps({**payload, "source": None}), files={})
    run = InductorCompiler().load(whole)
    assert isinstance(run, Partitioned)
    assert isinstance(ready.run, Partitioned)
    assert run.count == ready.run.count == 4
    args = inputs_of(program.pieces.piece("submod_0"), 5)
    again = copy.deepcopy(args)
    assert all(map(torch.equal, run(*args), ready.run(*again)))
    recorder, line = GraphRecorder(), partitioned_call(run)
    plan = capture_plan(lambda: line(*args), recorder, only_marked=True)
    plan.replay()
    assert (recorder.captures, recorder.replays) == (4, 8)


@pytest.mark.slow
def test_what_only_a_cut_reads_is_asked_about_as_with_cut_graphs(caplog: pytest.LogCaptureFixture) -> None:
    def step(x: Tensor, scale: Tensor) -> Tensor:
        return scaled_rows(x.sin(), scale).cos()

    fields = {**SETTINGS, "backend": "inductor", "splitting_ops": ["tests::scaled_rows"]}
    dims = {"x": 0, "scale": 0}
    run = tp.compile(
        step, use_inductor_graph_partition=True, dynamic_arg_dims=dims, compile_threads=1, **fields
    )
    args = batch(3)
    same(run(*args), step(*args))
    assert tp.program_of(run).warmup() is None
    assert "a cut reads 'scale', whose size may or may not be that of 'x'" in caplog.text


@pytest.mark.slow
def test_code_in_memory_is_captured_in_its_partitions_too(kept: Path) -> None:
    model, reference, handle = compiled(kept, backend="inductor_memory")
    model(*batch(4))
    with handle.counters.expect(static_graphs=4):
        handle.warmup([4])
    args = batch(3)
    with handle.counters.expect(calls_replayed=1):
        same(model(*args), reference(*args))
