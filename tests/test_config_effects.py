"""Every setting does something: for each field of ``Config`` a test that fails when the field is ignored.

:data:`EFFECTS` names them. That each really fails is itself a test (a slow one): it runs them with the field
forced back to its default behind the check of the settings.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import torch_piecewise as tp
from tests.kept_compiler import KeptEager
from tests.static_models import Rows
from tests.static_models import compiled as compiled_with_graphs
from torch_piecewise import manager
from torch_piecewise.artifact import Artifact
from torch_piecewise.compilers.base import CompileOptions
from torch_piecewise.config import settings
from torch_piecewise.cudagraphs import captured_sizes
from torch_piecewise.cudagraphs.fixed_inputs import FixedInputs
from torch_piecewise.managers import store_for
from torch_piecewise.piece import Piece
from torch_piecewise.pool import CompilePool
from torch_piecewise.ranges import Range
from torch_piecewise.testing import GraphRecorder, RecordingCompiler

pytestmark = pytest.mark.usefixtures("no_grad")

HERE = "tests/test_config_effects.py"
STATIC = "tests/test_static_calls.py"

EFFECTS: dict[str, str] = {
    "mode": "tests/test_compile_modes.py::test_a_mode_decides_what_a_model_is_cut_into",
    "backend": "tests/test_testing.py::test_the_recording_compiler_fails_where_it_was_told_to",
    "splitting_ops": "tests/test_compile.py::test_pieces_and_distinct_pieces_are_counted",
    "use_inductor_graph_partition": "tests/test_inductor_partition.py"
    "::test_the_splitting_ops_are_told_to_inductor_and_the_graph_is_left_whole",
    "dynamic_arg_dims": "tests/test_compile.py::test_two_symbols_stay_apart_and_a_shared_one_is_checked",
    "mark_unbacked_dims": "tests/test_dynamic_shapes.py"
    "::test_a_model_may_not_ask_about_a_size_of_which_nothing_is_assumed",
    "dynamic_shapes": "tests/test_dynamic_shapes.py::test_sizes_0_and_1_are_right_under_every_policy",
    "evaluate_guards": "tests/test_guards.py"
    "::test_an_evaluated_guard_on_a_size_is_an_error_that_shows_the_line",
    "assume_32_bit_indexing": "tests/test_dynamic_shapes.py"
    "::test_a_tensor_of_fixed_size_that_32_bits_cannot_index_is_told_with_its_line",
    "dispatch_on": f"{HERE}::test_ranges_are_about_the_dim_that_was_named",
    "compile_ranges_endpoints": "tests/test_compile.py"
    "::test_each_distinct_piece_is_compiled_once_per_range_and_exact_size",
    "compile_sizes": "tests/test_compile.py"
    "::test_each_distinct_piece_is_compiled_once_per_range_and_exact_size",
    "guards": "tests/test_guards.py::test_full_guards_notice_what_the_cheap_ones_may_not",
    "on_guard_failure": "tests/test_guards.py::test_a_violated_full_guard_is_named",
    "cudagraph_mode": f"{STATIC}::test_full_mode_makes_one_graph_of_a_call_with_the_cuts_in_it",
    "cudagraph_capture_sizes": f"{STATIC}::test_sizes_beyond_the_largest_run_compiled_and_the_table_says_so",
    "max_cudagraph_capture_size": f"{HERE}::test_the_largest_captured_size_bounds_what_is_captured",
    "cudagraph_num_of_warmups": f"{STATIC}"
    "::test_calls_capture_by_themselves_unless_capture_is_kept_to_warmup",
    "cudagraph_copy_inputs": f"{STATIC}::test_inputs_are_not_copied_where_the_caller_keeps_them_in_place",
    "cudagraph_capture": f"{STATIC}::test_sizes_can_be_captured_between_calls",
    "cudagraph_padding": "tests/test_padding.py"
    "::test_the_caller_can_promise_that_padding_is_harmless_or_forbid_it",
    "cudagraph_pad_values": f"{STATIC}::test_padding_is_filled_with_what_an_argument_is_padded_with",
    "cudagraph_outputs": f"{STATIC}::test_results_still_held_are_refused_when_that_was_asked_for",
    "cudagraph_lora_counts": f"{STATIC}::test_numbers_of_adapters_have_captures_of_their_own",
    "cudagraph_tokens_per_request": f"{HERE}::test_a_uniform_batch_may_have_several_tokens_of_each_request",
    "cudagraph_uniform_when": f"{STATIC}::test_what_a_uniform_batch_is_can_be_told_without_a_context",
    "capture_only_in_warmup": f"{STATIC}::test_calls_capture_by_themselves_unless_capture_is_kept_to_warmup",
    "check_addresses": f"{HERE}::test_addresses_are_checked_where_that_is_asked_for",
    "cudagraph_memory_budget": f"{STATIC}::test_the_budget_keeps_what_was_used_last_and_is_reported",
    "cudagraph_time_budget": f"{STATIC}::test_with_no_budget_left_calls_run_compiled",
    "static_graph_class": f"{STATIC}::test_after_capture_a_call_is_replays_and_cut_bodies_and_nothing_else",
    "inductor_compile_config": f"{HERE}::test_a_compiler_is_told_inductors_settings",
    "inductor_passes": f"{HERE}::test_a_compiler_is_told_the_passes",
    "pass_config": f"{HERE}::test_a_compiler_is_told_the_passes",
    "cache_dir": f"{HERE}::test_what_is_kept_is_under_the_root_that_was_given",
    "disable_cache": f"{HERE}::test_without_a_cache_nothing_is_kept",
    "cache_size_limit": f"{HERE}::test_a_root_is_opened_with_the_limit_that_was_given",
    "key_environment": f"{HERE}::test_a_variable_of_the_key_decides_what_is_found",
    "signing_key_file": "tests/bundles/test_refusals.py"
    "::test_a_signed_bundle_starts_with_its_key_and_without_any",
    "on_miss": f"{HERE}::test_a_miss_can_be_served_eagerly",
    "upgrade_to": "tests/test_background.py::test_better_pieces_replace_the_first_ones_one_by_one",
    "compile_threads": f"{HERE}::test_one_thread_compiles_here_and_more_are_workers",
    "debug_dump_path": "tests/test_inspection.py::test_each_program_gets_a_folder_that_shows_how_it_was_made",
    "on_piece_error": f"{HERE}::test_a_piece_that_fails_can_run_eagerly",
    "on_slow_piece": "tests/trials/test_profile.py"
    "::test_a_slow_piece_runs_eagerly_from_then_on_for_the_range_it_was_slow_for",
    "count_calls": "tests/report/test_report.py::test_calls_are_counted_by_the_range_that_served_them",
}
"""Field -> the test that fails when it is ignored."""

REPOSITORY = Path(__file__).parents[1]


def test_the_table_has_every_field_and_no_other() -> None:
    assert sorted(EFFECTS) == sorted(settings())


@pytest.mark.parametrize("field", EFFECTS)
def test_the_table_names_a_test_that_is_there(field: str) -> None:
    path, _, name = EFFECTS[field].partition("::")
    tree = ast.parse((REPOSITORY / path).read_text())
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.slow
@pytest.mark.parametrize("field", EFFECTS)
def test_the_named_test_fails_when_the_field_is_ignored(field: str) -> None:
    plugins = ("-p", "tests.ignoring_a_field", "-p", "no:cacheprovider")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", *plugins, EFFECTS[field]],
        cwd=REPOSITORY,
        env={**os.environ, "IGNORED_FIELD": field, "PYTHONPATH": os.pathsep.join(("src", "."))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1, run.stdout[-2000:]


# -- the effects that no other file shows


def tripled(x: Tensor) -> Tensor:
    return torch.sin(x) * 3


def doubled(x: Tensor) -> Tensor:
    return torch.cos(x) * 2


def call(function: Callable[[Tensor], Tensor] = tripled, **fields: Any) -> Any:
    """``function`` compiled for one call, and its handle."""
    made = tp.compile(function, **{"backend": KeptEager(), "dynamic_arg_dims": {"x": 0}, **fields})
    x = torch.randn(4, 3)
    assert torch.equal(made(x), function(x))
    return tp.program_of(made)


def test_ranges_are_about_the_dim_that_was_named() -> None:
    def both(x: Tensor, y: Tensor) -> Tensor:
        return x.sum() + y.sin()

    made = tp.compile(
        both,
        backend="eager",
        dynamic_arg_dims={"x": 0, "y": 0},
        dispatch_on="y.0",
        compile_ranges_endpoints=[8],
    )
    with tp.program_of(made).counters.expect(artifacts_compiled=2):
        made(torch.randn(3), torch.randn(4))
    sizes = tp.program_of(made).entries[0].program.sizes
    assert sizes.names[sizes.dispatch or ""] == "L['y'].size()[0]"


class Noting(RecordingCompiler):
    """Keeps what it is told."""

    runs_passes = True

    def __init__(self) -> None:
        super().__init__()
        self.options: list[CompileOptions] = []

    def compile(self, piece: Piece, range: Range, options: CompileOptions) -> Artifact:
        self.options.append(options)
        return super().compile(piece, range, options)


def told(**fields: Any) -> CompileOptions:
    compiler = Noting()
    call(backend=compiler, disable_cache=True, **fields)
    (options,) = compiler.options
    return options


def test_a_compiler_is_told_inductors_settings() -> None:
    options = told(inductor_compile_config={"epilogue_fusion": False}, assume_32_bit_indexing=True)
    assert options.inductor_config == {"epilogue_fusion": False, "assume_32bit_indexing": True}


def a_pass(graph: torch.fx.Graph) -> None:
    """Leaves the graph as it is."""


def test_a_compiler_is_told_the_passes() -> None:
    options = told(inductor_passes={"mine": a_pass}, pass_config={"noop_elimination": False})
    assert options.passes is not None
    names = [str(getattr(one, "name", one)) for one in options.passes.all]
    assert names[0].endswith("a_pass")
    assert not any("noop" in name.lower() for name in names)


def test_what_is_kept_is_under_the_root_that_was_given(tmp_path: Path) -> None:
    call(cache_dir=str(tmp_path / "root"))
    assert any((tmp_path / "root").rglob("*.json"))
    assert call(cache_dir=str(tmp_path / "root")).stats.traces == 0
    assert call(cache_dir=str(tmp_path / "other")).stats.traces == 1


def test_without_a_cache_nothing_is_kept(tmp_path: Path) -> None:
    for _start in range(2):
        assert call(cache_dir=str(tmp_path / "root"), disable_cache=True).stats.traces == 1
    assert not (tmp_path / "root").exists()


def test_a_root_is_opened_with_the_limit_that_was_given(tmp_path: Path) -> None:
    """What a limit does is tested with the store; here it takes a root that nobody reads from any more."""
    store = store_for(tp.Config(cache_dir=str(tmp_path), cache_size_limit=4096))
    assert store is not None
    assert store.limit_bytes == 4096


def test_a_variable_of_the_key_decides_what_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    traces = []
    for value in ("one", "two", "one"):
        monkeypatch.setenv("MY_KERNELS", value)
        traces.append(call(cache_dir=str(tmp_path), key_environment=["MY_KERNELS"]).stats.traces)
    assert traces == [1, 1, 0]


def test_a_miss_can_be_served_eagerly(tmp_path: Path) -> None:
    assert call(cache_dir=str(tmp_path), on_miss="eager").stats.traces == 0


@pytest.mark.parametrize(("threads", "workers"), [(1, 0), (3, 2)])
def test_one_thread_compiles_here_and_more_are_workers(
    threads: int, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[int] = []

    def pool(count: int, *rest: Any) -> CompilePool:
        started.append(count)
        return CompilePool(count, *rest)

    monkeypatch.setattr(manager, "CompilePool", pool)
    tp.CompilerManager(tp.Config(backend=KeptEager(), compile_threads=threads))
    assert started == [workers]


def test_a_piece_that_fails_can_run_eagerly() -> None:
    handle = call(backend=RecordingCompiler(failing=["submod_0"]), on_piece_error="eager", disable_cache=True)
    assert handle.counters["pieces_failed"] == 1
    assert handle.stats.eager_pieces == 1
    assert ", 1 eager, " in str(handle.stats)
    assert handle.report().programs[0].eager == ("submod_0",)


def test_the_largest_captured_size_bounds_what_is_captured() -> None:
    sizes = tp.Config(cudagraph_mode="full", max_cudagraph_capture_size=6).resolved_capture_sizes()
    assert sizes == (1, 2, 4, 6)


def test_a_uniform_batch_may_have_several_tokens_of_each_request() -> None:
    model, reference, handle = compiled_with_graphs(
        Rows(), cudagraph_mode="full_decode_only", cudagraph_tokens_per_request=2
    )
    model(torch.randn(4, 8))
    handle.warmup([4])
    batch = tp.BatchDescriptor(4, num_reqs=2, uniform=True)
    mode, _ = handle.dispatch(batch)
    assert mode is tp.CUDAGraphMode.FULL
    with tp.forward_context(*handle.dispatch(batch)):
        x = torch.randn(4, 8)
        torch.testing.assert_close(model(x), reference(x))


class Trusting(GraphRecorder):
    """A recorder that checks no addresses unless it is told to, as a GPU does."""

    checks_addresses = False


@pytest.mark.parametrize("asked", [True, False])
def test_addresses_are_checked_where_that_is_asked_for(asked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[bool] = []

    def noting(*args: Any, check_addresses: bool, **rest: Any) -> FixedInputs:
        checked.append(check_addresses)
        return FixedInputs(*args, check_addresses=check_addresses, **rest)

    monkeypatch.setattr(captured_sizes, "FixedInputs", noting)
    model, _reference, handle = compiled_with_graphs(
        Rows(), static_graph_class=f"{__name__}.Trusting", check_addresses=asked
    )
    model(torch.randn(4, 8))
    handle.warmup([4])
    assert set(checked) == {asked}
