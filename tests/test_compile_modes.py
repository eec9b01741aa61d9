"""Each mode through tp.compile, on a class, an instance, a function and a method."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import torch_piecewise as tp
from tests.graphs import Stack, attention
from torch_piecewise.errors import ConfigError
from torch_piecewise.whole_model import stock_arguments

pytestmark = pytest.mark.usefixtures("no_grad")

MODES = ("none", "stock_torch_compile", "trace_once", "piecewise")
FIELDS: dict[str, Any] = {"backend": "eager", "dynamic_arg_dims": {"x": 0}}


def attended(x: Tensor) -> Tensor:
    out = torch.empty_like(x)
    attention(x, x + 1, x * 2, out, "one")
    return out.sin()


class Attended(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return attended(x)

    def twice(self, x: Tensor) -> Tensor:
        return attended(x) * 2


def a_class(**fields: Any) -> Callable[[Tensor], Tensor]:
    class Compiled(Attended):
        pass

    return tp.compile(Compiled, **fields)()


def an_instance(**fields: Any) -> Callable[[Tensor], Tensor]:
    return tp.compile(Attended(), **fields)


def a_function(**fields: Any) -> Callable[[Tensor], Tensor]:
    return tp.compile(attended, **fields)


def a_method(**fields: Any) -> Callable[[Tensor], Tensor]:
    return tp.compile(Attended().twice, **fields)


TARGETS = pytest.mark.parametrize("target", [a_class, an_instance, a_function, a_method])


def expected(target: Callable[..., Any], x: Tensor) -> Tensor:
    return attended(x) * 2 if target is a_method else attended(x)


@TARGETS
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_computes_the_same_on_every_kind_of_target(target: Callable[..., Any], mode: str) -> None:
    call = target(mode=mode, **FIELDS)
    for n in (3, 1, 8):
        x = torch.randn(n, 4)
        assert torch.equal(call(x), expected(target, x))


@TARGETS
@pytest.mark.parametrize(
    ("mode", "pieces", "cuts", "traces"),
    [("none", 0, 0, 0), ("stock_torch_compile", 0, 0, 0), ("trace_once", 1, 0, 1), ("piecewise", 2, 1, 1)],
)
def test_a_mode_decides_what_a_model_is_cut_into(
    target: Callable[..., Any], mode: str, pieces: int, cuts: int, traces: int
) -> None:
    ops = {} if mode == "stock_torch_compile" else {"splitting_ops": ["tests::attention"]}
    call = target(mode=mode, **FIELDS, **ops)
    call(torch.randn(3, 4))
    stats = tp.program_of(call).stats
    assert (stats.pieces, stats.cuts, stats.traces) == (pieces, cuts, traces)


@TARGETS
@pytest.mark.parametrize("mode", MODES)
def test_restore_runs_the_uncompiled_call_in_every_mode(target: Callable[..., Any], mode: str) -> None:
    call = target(mode=mode, **FIELDS)
    call(torch.randn(3, 4))
    handle = tp.program_of(call)
    handle.restore()
    x = torch.randn(5, 4, 1)[..., 0].double()  # a kind of call no trace was made for
    with torch._dynamo.config.patch(disable=True), handle.counters.expect(graphs_captured=0):
        assert torch.equal(call(x), expected(target, x))


def test_the_mode_none_loads_nothing_that_compiles() -> None:
    program = """
import sys, torch, torch_piecewise as tp
model = tp.compile(torch.nn.Linear(4, 4), mode="none")
model(torch.randn(2, 4))
assert "torch._inductor" not in sys.modules and "torch._dynamo" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("mode", ["none", "stock_torch_compile"])
def test_a_hook_added_after_compiling_runs_in_the_modes_that_leave_the_model_whole(mode: str) -> None:
    model = an_instance(mode=mode, **FIELDS)
    x = torch.randn(3, 4)
    model(x)
    assert isinstance(model, torch.nn.Module)
    model.register_forward_hook(lambda _module, _args, result: result + 1)
    assert torch.equal(model(x), attended(x) + 1)


def test_stock_compiling_really_compiles() -> None:
    torch._dynamo.reset()
    before = torch._dynamo.utils.counters["frames"]["ok"]
    a_function(mode="stock_torch_compile", **FIELDS)(torch.randn(3, 4))
    assert torch._dynamo.utils.counters["frames"]["ok"] == before + 1


@pytest.mark.parametrize(
    ("fields", "compiles"),
    [
        ({}, 1),
        ({"dynamic_arg_dims": {}}, 3),
        ({"dynamic_shapes": "unbacked"}, 1),
        ({"mark_unbacked_dims": {"x": 0}}, 1),
    ],
)
def test_stock_compiling_is_told_which_dims_are_dynamic(fields: dict[str, Any], compiles: int) -> None:
    torch._dynamo.reset()
    call = a_function(mode="stock_torch_compile", **{**FIELDS, **fields})
    before = torch._dynamo.utils.counters["frames"]["ok"]
    with torch._dynamo.config.patch(automatic_dynamic_shapes=False):
        for n in (3, 4, 5):
            call(torch.randn(n, 4))
    assert torch._dynamo.utils.counters["frames"]["ok"] - before == compiles


def test_stock_compiling_without_annotations_leaves_the_dims_to_torch() -> None:
    call = tp.compile(lambda x: x + 1, mode="stock_torch_compile", backend="eager")
    for n in (3, 5):
        x = torch.randn(n)
        assert torch.equal(call(x), x + 1)


@pytest.mark.parametrize(
    ("fields", "arguments"),
    [
        ({}, {"backend": "inductor"}),
        ({"backend": "eager"}, {"backend": "eager"}),
        ({"backend": "inductor_memory"}, {"backend": "inductor"}),
        (
            {"inductor_compile_config": {"max_autotune": True}, "assume_32_bit_indexing": True},
            {"backend": "inductor", "options": {"max_autotune": True, "assume_32bit_indexing": True}},
        ),
    ],
)
def test_stock_compiling_gets_the_settings_that_it_has_too(
    fields: dict[str, Any], arguments: dict[str, Any]
) -> None:
    assert stock_arguments(tp.Config(mode="stock_torch_compile", **fields)) == arguments


@pytest.mark.inductor
def test_stock_compiling_with_inductor_and_an_option() -> None:
    model = tp.compile(
        Stack(1).eval(), mode="stock_torch_compile", inductor_compile_config={"epilogue_fusion": False}
    )
    reference = Stack(1).eval()
    reference.load_state_dict(model.state_dict())
    for n in (4, 6):
        ids = torch.randint(0, 50, (n,))
        torch.testing.assert_close(model(ids), reference(ids))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("splitting_ops", ["tests::attention"]),
        ("use_inductor_graph_partition", True),
        ("evaluate_guards", True),
        ("compile_ranges_endpoints", [8]),
        ("compile_sizes", [1]),
        ("guards", "full"),
        ("on_guard_failure", "error"),
        ("inductor_passes", {"mine": "my.passes.Mine"}),
        ("pass_config", {"noop": False}),
        ("backend", "aot_inductor"),
    ],
)
def test_stock_compiling_refuses_what_torch_compile_has_nothing_like(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"{field} and mode contradict each other"):
        tp.Config(mode="stock_torch_compile", **{field: value})


@pytest.mark.parametrize("mode", ["none", "stock_torch_compile"])
def test_a_mode_without_sizes_says_so_when_they_are_asked_for(mode: str) -> None:
    call = a_function(mode=mode, **FIELDS)
    message = f"mode='{mode}' has no sizes to make ready.*call the model once with each size"
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        tp.program_of(call).warmup([1, 2])


def test_as_a_backend_the_mode_none_runs_the_graph_as_it_was_traced() -> None:
    x = torch.randn(3, 4)
    assert torch.equal(torch.compile(attended, backend="piecewise", options={"mode": "none"})(x), attended(x))


def test_as_a_backend_stock_compiling_is_refused() -> None:
    message = "A backend of torch.compile cannot hand its graph to torch.compile"
    with pytest.raises(ConfigError, match=re.escape(message)):
        tp.PiecewiseCompileBackend(mode="stock_torch_compile")
