"""Which dims change and which of them ranges are about, however they are written down."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx import GraphModule

import torch_piecewise as tp
from torch_piecewise.errors import ConfigError, DynamicDimError, MissError

pytestmark = pytest.mark.usefixtures("no_grad")


def doubled(x: Tensor) -> Tensor:
    return torch.sin(x) * 2


def served(function: Callable[..., Any], *calls: tuple[Any, ...], **fields: Any) -> tp.Stats:
    """What serving these calls took, each right."""
    made = tp.compile(function, **{"backend": "eager", "disable_cache": True, **fields})
    for call in calls:
        assert torch.equal(made(*call), function(*call))
    return tp.program_of(made).stats


def dispatch_of(function: Callable[..., Any], call: tuple[Any, ...], **fields: Any) -> str:
    """Which size ranges are about, as the program reads it from a call."""
    made = tp.compile(function, backend="eager", disable_cache=True, **fields)
    made(*call)
    sizes = tp.program_of(made).entries[0].program.sizes
    return sizes.names[sizes.dispatch or ""]


# -- a dim counted from the last is the dim that it is


@pytest.mark.parametrize("declared", [1, -1, [1, -1], {-1: "n"}, {1: "n", -1: None}, {-1: "n", 1: "n"}])
@pytest.mark.parametrize("named", ["x.1", "x.-1", "x.-01", None])
def test_a_dim_is_the_same_counted_from_the_first_and_from_the_last(declared: Any, named: str | None) -> None:
    fields = {"dynamic_arg_dims": {"x": declared}, "dispatch_on": named}
    assert dispatch_of(doubled, (torch.randn(3, 4),), **fields) == "L['x'].size()[1]"
    stats = served(
        doubled, (torch.randn(3, 4),), (torch.randn(3, 9),), compile_ranges_endpoints=[5], **fields
    )
    assert (stats.traces, stats.artifacts_compiled) == (1, 2)


def test_texts_of_one_dim_are_one_setting() -> None:
    assert tp.Config(dispatch_on="x.-01") == tp.Config(dispatch_on="x.-1")


def test_one_dim_with_two_symbols_is_refused() -> None:
    with pytest.raises(DynamicDimError) as caught:
        served(doubled, (torch.randn(3, 4),), dynamic_arg_dims={"x": {1: "a", -1: "b"}})
    assert str(caught.value) == (
        "Dim 1 of argument 'x' was given two symbols\n"
        "  expected: one of 'a' and 'b'\n"
        "  got: dims 1, -1 of a 2-d tensor\n"
        "  to do: name each dim once; a negative dim counts from the last"
    )


@pytest.mark.parametrize("named", ["x.0", "x.-2", "x.5", "x.-3", "y.1"])
def test_a_dim_that_is_not_dynamic_cannot_be_dispatched_on(named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        served(doubled, (torch.randn(3, 4),), dynamic_arg_dims={"x": -1}, dispatch_on=named)
    assert "dispatch_on" in str(caught.value)
    assert "expected: one of x.1" in str(caught.value) or "dispatch_on is one of the dynamic dims" in (
        str(caught.value)
    )


def test_calls_without_the_argument_that_is_dispatched_on_are_served_for_all_sizes() -> None:
    def scaled(x: Tensor, by: Tensor | None = None) -> Tensor:
        return x.sin() if by is None else x.sum() * by

    calls = [(torch.randn(3),), (torch.randn(9),), (torch.randn(3), torch.randn(4))]
    stats = served(scaled, *calls, dispatch_on="by.0", compile_ranges_endpoints=[8])
    assert (stats.traces, stats.artifacts_compiled) == (2, 3)


def test_dims_of_one_symbol_that_differ_are_told_what_to_do() -> None:
    def both(x: Tensor, y: Tensor) -> Tensor:
        return x.sum() + y

    with pytest.raises(DynamicDimError) as caught:
        served(both, (torch.randn(3), torch.randn(4)), dynamic_arg_dims={"x": {0: "n"}, "y": {0: "n"}})
    assert str(caught.value) == (
        "Dims that share the symbol 'n' differ in size\n"
        "  expected: y.0 == x.0 == 3\n"
        "  got: 4\n"
        "  to do: call it with equal sizes, or give each dim a symbol of its own in dynamic_arg_dims"
    )


# -- dims of which nothing is assumed


@pytest.mark.parametrize("dims", [{"x": -1}, {"x": 1}])
@pytest.mark.parametrize("declared", [{}, {"x": 1}, {"x": 0}])
def test_unbacked_dims_are_dynamic_whether_declared_besides_or_not(dims: Any, declared: Any) -> None:
    fields = {"dynamic_arg_dims": declared, "mark_unbacked_dims": dims}
    calls = [(torch.randn(3, columns),) for columns in (4, 9, 1)]
    assert served(doubled, *calls, **fields).traces == 1


def test_an_unbacked_dim_of_an_argument_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match="mark_unbacked_dims names an argument that doubled lacks"):
        served(doubled, mark_unbacked_dims={"z": 0})


# -- arguments that hold tensors


def nested(batch: dict[str, Any], *, scale: Tensor) -> Tensor:
    return batch["x"] * scale + batch["more"]["y"][0].sum()


def many(x: Tensor, *rest: Tensor, **named: Tensor) -> Tensor:
    for value in (*rest, *named.values()):
        x = x + value.sum()
    return x


def batch(rows: int) -> dict[str, Any]:
    return {"x": torch.randn(rows, 1), "more": {"y": [torch.randn(2)]}}


def test_containers_of_tensors_pass_through_and_their_sizes_are_fixed() -> None:
    made = tp.compile(nested, backend="eager", disable_cache=True, dynamic_arg_dims={"scale": 0})
    for rows, size in ((3, 2), (3, 5), (4, 5)):
        given, scale = batch(rows), torch.randn(size)
        assert torch.equal(made(given, scale=scale), nested(given, scale=scale))
    assert tp.program_of(made).stats.traces == 2


@pytest.mark.parametrize(
    ("function", "name", "args", "kwargs", "kind"),
    [
        (nested, "batch", (batch(3),), {"scale": torch.randn(2)}, "dict"),
        (many, "rest", (torch.randn(3), torch.randn(4)), {}, "tuple"),
        (many, "named", (torch.randn(3),), {"y": torch.randn(4)}, "dict"),
    ],
)
def test_dims_of_a_container_cannot_be_declared(
    function: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], kind: str
) -> None:
    made = tp.compile(function, backend="eager", disable_cache=True, dynamic_arg_dims={name: 0})
    with pytest.raises(DynamicDimError) as caught:
        made(*args, **kwargs)
    assert str(caught.value) == (
        f"Argument {name!r} has dynamic dims and is no tensor\n"
        "  expected: a tensor; dims of tensors in lists, mappings, *args and **kwargs cannot be named\n"
        f"  got: a {kind} with tensors in it\n"
        "  to do: pass those whose sizes change as arguments of their own (one given by name through "
        "**kwargs can be named)"
    )


def test_an_argument_given_by_name_through_kwargs_can_be_named() -> None:
    made = tp.compile(many, backend="eager", disable_cache=True, dynamic_arg_dims={"x": 0, "y": 0})
    for rows, size in ((3, 2), (4, 6)):
        x, y = torch.randn(rows), torch.randn(size)
        assert torch.equal(made(x, y=y), many(x, y=y))
    assert tp.program_of(made).stats.traces == 1


# -- under torch.compile


def by_torch_compile(**fields: Any) -> tp.PiecewiseCompileBackend:
    made: list[tp.PiecewiseCompileBackend] = []

    def backend(graph: GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        made.append(tp.PiecewiseCompileBackend(tp.Config(backend="eager", disable_cache=True, **fields)))
        return made[0](graph, inputs)

    torch._dynamo.reset()
    x = torch.randn(3, 4)
    assert torch.equal(torch.compile(doubled, backend=backend, dynamic=True)(x), doubled(x))
    return made[0]


@pytest.mark.parametrize("named", ["x.1", "x.-1"])
def test_torch_compiles_graphs_dispatch_on_the_dim_that_was_named(named: str) -> None:
    backend = by_torch_compile(dispatch_on=named, compile_ranges_endpoints=[8])
    assert backend.program is not None
    by_first = by_torch_compile(compile_ranges_endpoints=[8]).program
    assert by_first is not None
    assert len(backend.program.sizes.ranges) == 2
    assert backend.program.sizes.dispatch != by_first.sizes.dispatch


def test_a_graph_without_the_named_dim_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "torch_piecewise"):
        by_torch_compile(dispatch_on="other.0")
    assert (
        "dispatch_on='other.0' is no dynamic dim of this graph, which is compiled once for all sizes; it has"
        in caplog.text
    )


def test_settings_that_torch_compile_decides_are_told(caplog: pytest.LogCaptureFixture) -> None:
    options = {"backend": "eager", "dynamic_arg_dims": {"x": 0}, "disable_cache": True}
    with caplog.at_level(logging.WARNING, "torch_piecewise"):
        torch.compile(doubled, backend="piecewise", options=options)(torch.randn(3, 4))
    assert (
        "dynamic_arg_dims means nothing under torch.compile(backend='piecewise'), which traces by itself; "
        "what does it there: torch.compile(dynamic=True), or torch._dynamo.mark_dynamic(tensor, dim); or "
        "call tp.compile instead" in caplog.text
    )


def test_under_torch_compile_a_missing_piece_can_be_an_error_and_no_call_is_eager(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    options = {"backend": "torch_piecewise.testing.RecordingCompiler", "cache_dir": str(tmp_path)}
    x = torch.randn(3, 4)
    with pytest.raises(MissError, match="the store lacks 1 of the compiled pieces"):
        torch.compile(doubled, backend="piecewise", options={**options, "on_miss": "error"})(x)
    with caplog.at_level(logging.WARNING, "torch_piecewise"):
        torch.compile(doubled, backend="piecewise", options={**options, "on_miss": "eager"})(x)
    assert "on_miss means nothing under torch.compile(backend='piecewise')" in caplog.text
    torch._dynamo.reset()
    again = torch.compile(doubled, backend="piecewise", options={**options, "on_miss": "error"})
    assert torch.equal(again(x), doubled(x))


def test_settings_of_the_environment_are_not_told_to_torch_compile(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_PIECEWISE_GUARDS", "none")
    with caplog.at_level(logging.WARNING, "torch_piecewise"):
        options = {"backend": "eager", "disable_cache": True}
        torch.compile(doubled, backend="piecewise", options=options)(torch.randn(3, 4))
    assert "means nothing" not in caplog.text


# -- the handle


class Doubling(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return doubled(x)


def compiled_in_place() -> torch.nn.Module:
    module = Doubling()
    module.compile(backend="piecewise")
    return module


@pytest.mark.parametrize(
    ("make", "label"),
    [
        (lambda: torch.compile(Doubling(), backend="piecewise"), "Doubling"),
        (compiled_in_place, "Doubling"),
        (lambda: torch.compile(doubled, backend="piecewise"), "doubled"),
    ],
)
def test_what_torch_compile_made_has_no_handle_and_the_error_says_how_to_get_one(
    make: Callable[[], Any], label: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        tp.program_of(make())
    assert str(caught.value) == (
        "What torch.compile made has no handle\n"
        "  expected: a model or function that tp.compile returned\n"
        f"  got: torch.compile of {label}\n"
        "  to do: call tp.compile(model, **options) in place of torch.compile(model, backend='piecewise', "
        "options=options); or keep the backend of one graph: backend = tp.PiecewiseCompileBackend(...), "
        "torch.compile(model, backend=backend, fullgraph=True), then backend.program and backend.bus"
    )


def test_a_compiled_model_inside_torch_compile_keeps_its_handle() -> None:
    module = tp.compile(Doubling(), backend="eager")
    assert tp.program_of(torch.compile(module, backend="eager")) is tp.program_of(module)
