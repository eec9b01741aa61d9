"""Passes as settings of a compile."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, fx

import torch_piecewise as tp
from torch_piecewise.artifact_store import ArtifactStore
from torch_piecewise.compilers.base import CompileOptions
from torch_piecewise.errors import ConfigError, PassError, PieceCompileError
from torch_piecewise.events import Event, PassRecord
from torch_piecewise.graph_bytes import from_bytes, to_bytes
from torch_piecewise.passes.cleanup import CleanUp
from torch_piecewise.passes.noop_elimination import NoopElimination
from torch_piecewise.passes.plan import PassPlan
from torch_piecewise.ranges import Range
from torch_piecewise.store import Flights, MemoryStore, OpenStore
from torch_piecewise.torch_private.passes import POST_GRAD_HOOK

aten = torch.ops.aten


@dataclass(frozen=True)
class Swap(tp.GraphPass):
    """Puts one operator in the place of another, on graphs for sizes up to ``largest``."""

    old: Any = aten.sin.default
    new: Any = aten.cos.default
    largest: int = 10**9

    def __call__(self, graph: fx.Graph) -> int:
        if tp.get_pass_context().compile_range.start > self.largest:
            return 0
        found = graph.find_nodes(op="call_function", target=self.old)
        for node in found:
            node.target = self.new
        return len(found)


def cos_to_exp(graph: fx.Graph) -> int:
    return Swap(aten.cos.default, aten.exp.default)(graph)


def breaks(graph: fx.Graph) -> int:
    next(iter(reversed(graph.nodes))).args = ((),)
    return 1


class Wave(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(x) + 1


def compiled(**fields: Any) -> tuple[Any, list[Event]]:
    events: list[Event] = []
    model = tp.compile(Wave(), dynamic_arg_dims={"x": 0}, **{"disable_cache": True} | fields)
    tp.program_of(model).bus.add(events.append)
    return model, events


@pytest.mark.inductor
@pytest.mark.usefixtures("no_grad")
def test_passes_run_in_order_within_the_range_of_each_compile():
    model, events = compiled(
        inductor_passes={"swap": Swap(largest=8), "then": f"{__name__}.cos_to_exp"},
        compile_ranges_endpoints=[8],
        inductor_compile_config={"fx_graph_cache": False},
    )
    small, large = torch.randn(5), torch.randn(50)
    torch.testing.assert_close(model(small), torch.exp(small) + 1)
    torch.testing.assert_close(model(large), torch.sin(large) + 1)
    records = [event for event in events if isinstance(event, PassRecord)]
    names = ["noop_elimination", "swap", "then", "clean_up"]
    assert [(record.range, record.name) for record in records] == [
        (tp.Range(*ends), name) for ends in ((1, 8), (9, records[-1].range.end)) for name in names
    ]
    assert [record.matches for record in records if record.name == "swap"] == [1, 0]
    assert {record.piece for record in records} == {"submod_0"}
    counters = tp.program_of(model).counters
    assert (counters["passes_run"], counters["pass_matches"]) == (8, 2)


@pytest.mark.inductor
def test_passes_also_run_where_gradients_are_recorded():
    model, events = compiled(
        inductor_passes={"swap": Swap()},
        pass_config={"noop_elimination": False},
        inductor_compile_config={"fx_graph_cache": False},
    )
    x = torch.randn(5, requires_grad=True)
    torch.testing.assert_close(model(x), torch.cos(x) + 1)
    assert "swap" in {event.name for event in events if isinstance(event, PassRecord)}


@pytest.mark.inductor
@pytest.mark.slow
@pytest.mark.usefixtures("no_grad")
def test_passes_also_run_in_ahead_of_time_compiles():
    model, events = compiled(backend="aot_inductor", inductor_passes={"swap": Swap()})
    x = torch.randn(5)
    torch.testing.assert_close(model(x), torch.cos(x) + 1)
    assert [event.matches for event in events if isinstance(event, PassRecord) and event.name == "swap"] == [
        1
    ]


@pytest.mark.inductor
@pytest.mark.usefixtures("no_grad")
def test_a_local_function_runs_and_nothing_of_it_is_kept(caplog):
    def local(graph: fx.Graph) -> int:
        return Swap()(graph)

    with caplog.at_level(logging.WARNING, "torch_piecewise"):
        model, _ = compiled(inductor_passes={"local": local}, disable_cache=False)
        x = torch.randn(5)
        torch.testing.assert_close(model(x), torch.cos(x) + 1)
    assert "is kept: The pass local has no identity that holds in another process" in caplog.text
    again, _ = compiled(inductor_passes={"local": local}, disable_cache=False)
    again(x)
    assert tp.program_of(again).counters["artifacts_compiled"] == 1


@pytest.mark.inductor
@pytest.mark.usefixtures("no_grad")
def test_a_pass_that_breaks_the_graph_is_named_with_the_passes_before_it():
    model, _ = compiled(inductor_passes={"swap": Swap(), "breaks": breaks})
    with pytest.raises(PieceCompileError) as caught:
        model(torch.randn(5))
    assert str(caught.value) == (
        "submod_0 failed to compile for sizes [1, inf] with 'inductor': The pass breaks left a broken graph "
        "(range [1, inf]; passes before it: noop_elimination (NoopElimination), swap (Swap))\n"
        "  expected: a rewrite in place: values defined before use, operators with their arguments, "
        "the same inputs, as many outputs\n"
        "  got: its outputs had the structure (*) and have ()\n"
        "  to do: mend the pass; the graph is again what it was before it, "
        "and debug_dump_path shows both as text"
    )


@pytest.mark.inductor
@pytest.mark.usefixtures("no_grad")
def test_a_piece_whose_pass_fails_runs_eagerly_where_that_is_wanted():
    model, _ = compiled(inductor_passes={"breaks": breaks}, on_piece_error="eager")
    x = torch.randn(5)
    assert torch.equal(model(x), torch.sin(x) + 1)


@pytest.mark.inductor
@pytest.mark.usefixtures("no_grad")
def test_a_users_pass_at_inductors_own_hook_runs_after_ours():
    model, _ = compiled(
        inductor_passes={"swap": Swap()},
        inductor_compile_config={POST_GRAD_HOOK: cos_to_exp, "fx_graph_cache": False},
    )
    x = torch.randn(5)
    torch.testing.assert_close(model(x), torch.exp(x) + 1)


def test_a_pass_manager_under_the_hook_is_an_error():
    model, _ = compiled(inductor_compile_config={POST_GRAD_HOOK: tp.PassManager([Swap()])})
    with pytest.raises(PassError) as caught:
        model(torch.randn(5))
    assert str(caught.value) == (
        "A pass manager was given as a pass\n"
        "  expected: passes; the one manager takes the hook post_grad_custom_post_pass itself\n"
        "  got: a second PassManager\n"
        "  to do: give its passes one by one, by inductor_passes or PassManager.add"
    )


def test_passes_with_the_eager_compiler_are_refused():
    with pytest.raises(ConfigError) as caught:
        tp.Config(backend="eager", pass_config={"noop_elimination": True})
    assert str(caught.value) == (
        "pass_config and backend contradict each other\n"
        "  expected: a backend that runs graph passes; 'eager' runs each piece as it was traced\n"
        "  got: pass_config={'noop_elimination': True}, backend='eager'\n"
        "  to do: set backend='inductor', or leave pass_config out"
    )


class Deaf:
    name = "deaf"

    def fingerprint(self) -> str:
        return "1"

    def compile(self, piece: Any, range: Range, options: CompileOptions) -> Any:
        raise AssertionError

    def load(self, artifact: Any) -> Any:
        raise AssertionError


def test_passes_with_a_compiler_that_does_not_run_any_are_refused():
    model, _ = compiled(backend=f"{__name__}.Deaf", inductor_passes={"swap": Swap()})
    with pytest.raises(ConfigError) as caught:
        model(torch.randn(5))
    assert str(caught.value) == (
        "inductor_passes and pass_config have no effect with the compiler 'deaf'\n"
        "  expected: backend='inductor', or a compiler whose attribute runs_passes says that it runs them\n"
        "  got: backend 'deaf'\n"
        "  to do: leave the passes out, or choose a compiler that runs them"
    )


# The plan


def test_without_passes_inductor_runs_as_it_comes():
    assert PassPlan.for_compile(tp.Config()) is None


def test_a_pass_at_the_hook_alone_brings_no_other_with_it():
    plan = PassPlan.for_compile(tp.Config(inductor_compile_config={POST_GRAD_HOOK: Swap()}))
    assert plan == PassPlan((Swap(),))
    plan = PassPlan.for_compile(tp.Config(inductor_passes={"swap": Swap()}))
    assert plan is not None and plan.all == (NoopElimination(), Swap(), CleanUp())


def test_a_plan_travels_to_workers_if_its_passes_can():
    plan = PassPlan((Swap(),)).and_([cos_to_exp])
    assert from_bytes(to_bytes(plan)) == plan
    with pytest.raises(tp.errors.FingerprintError, match="cannot be kept"):
        to_bytes(plan.and_([lambda graph: None]))


def test_an_artifact_is_found_only_under_the_passes_it_was_made_with():
    store = OpenStore(MemoryStore(), Flights(None))
    compiler = tp.make_compiler("inductor")
    plans = [
        None,
        PassPlan(),
        PassPlan((Swap(),)),
        PassPlan((Swap(largest=8),)),
        PassPlan((Swap(), NoopElimination())),
        PassPlan((NoopElimination(), Swap())),
    ]
    keys = {
        ArtifactStore.of(store, compiler, CompileOptions(passes=plan)).key("piece", Range(1, 8))
        for plan in plans
    }
    assert len(keys) == len(plans)
