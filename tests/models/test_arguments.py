"""Every way to pass arguments: containers, plain values, defaults, keywords, through decorators."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import torch_piecewise as tp
from tests.models.checks import SIZES, Inputs, works_unchanged
from torch_piecewise.errors import GuardError

pytestmark = pytest.mark.usefixtures("no_grad")


@dataclass
class Batch:
    ids: Tensor
    mask: Tensor | None = None


class Pair(NamedTuple):
    left: Tensor
    right: Tensor


def nested(parts: dict[str, Any], more: Sequence[Tensor], x: Tensor) -> Tensor:
    total = x + parts["a"] * parts["inner"]["b"]
    for one in more:
        total = total + one
    return total


@pytest.mark.parametrize("kind", [list, tuple])
def test_dicts_and_sequences_of_tensors(kind: type) -> None:
    def inputs(n: int) -> Inputs:
        parts = {"a": torch.randn(n, 3), "inner": {"b": torch.randn(n, 3)}}
        return parts, kind((torch.randn(3), torch.randn(n, 3))), torch.randn(n, 3)

    works_unchanged(nested, inputs, [3], dynamic_arg_dims={})


def test_another_number_of_tensors_in_a_list_is_another_trace() -> None:
    def inputs(count: int) -> Inputs:
        return {"a": torch.ones(3), "inner": {"b": torch.ones(3)}}, [torch.ones(3)] * count, torch.randn(3)

    works_unchanged(nested, inputs, [2, 3, 0, 2, 3], dynamic_arg_dims={}, traces=3)


def test_sizes_of_tensors_inside_containers_are_fixed_and_checked() -> None:
    def inputs(n: int) -> Inputs:
        return {"a": torch.randn(n), "inner": {"b": torch.randn(n)}}, [], torch.randn(n)

    works_unchanged(nested, inputs, [3, 5, 3], dynamic_arg_dims={}, traces=2)


def test_a_named_tuple_and_a_dataclass() -> None:
    def mixed(pair: Pair, batch: Batch, x: Tensor) -> Tensor:
        y = pair.left + pair.right * batch.ids + x
        return y if batch.mask is None else y * batch.mask

    def inputs(masked: bool) -> Inputs:
        one, two, three, four = torch.randn(4, 3)
        return Pair(one, two), Batch(three, four if masked else None), torch.randn(3)

    works_unchanged(mixed, inputs, [False, True, False], dynamic_arg_dims={}, traces=2)


def test_numpy_arrays() -> None:
    def added(x: Tensor, array: Any) -> Tensor:
        return x + torch.from_numpy(array).sum() * array.shape[0]

    def inputs(n: int) -> Inputs:
        return torch.randn(2), torch.randn(n).numpy()

    works_unchanged(added, inputs, [3, 2, 3], dynamic_arg_dims={}, traces=2)


# -- plain values


def windowed(x: Tensor, count: int, scale: float = 1.0, *, flip: bool = False, mode: str = "sum") -> Tensor:
    y = x[:count] * scale
    y = y.flip(0) if flip else y
    return y.sum(0) if mode == "sum" else y.mean(0)


def test_an_integer_argument_that_changes() -> None:
    works_unchanged(windowed, lambda count: (torch.randn(9, 2), count), [1, 2, 9, 1], traces=3)


def test_default_and_keyword_arguments() -> None:
    def inputs(keywords: tuple[tuple[str, Any], ...]) -> Inputs:
        return {"x": torch.randn(5, 2), "count": 2, **dict(keywords)}

    ways = [(), (("scale", 1.0),), (("flip", True),), (("mode", "mean"), ("scale", 2.0)), (("mode", "sum"),)]
    works_unchanged(windowed, inputs, ways, traces=3)


def test_keywords_in_another_order_are_the_same_call() -> None:
    def inputs(backwards: bool) -> Inputs:
        named = {"x": torch.randn(3, 2), "count": 2, "scale": 2.0}
        return dict(reversed(named.items())) if backwards else named

    works_unchanged(windowed, inputs, [False, True])


def test_true_and_one_are_different_calls() -> None:
    def told(x: Tensor, flag: Any) -> Tensor:
        return x + 1 if flag is True else x - 1

    works_unchanged(
        told, lambda flag: (torch.randn(3), flag), [True, 1, 1.0, True], dynamic_arg_dims={}, traces=3
    )


def test_an_argument_that_is_none_or_not() -> None:
    def biased(x: Tensor, bias: Tensor | None = None) -> Tensor:
        return x if bias is None else x + bias

    def inputs(size: tuple[int, bool]) -> Inputs:
        return torch.randn(size[0], 3), torch.randn(3) if size[1] else None

    sizes = [(3, True), (1, False), (3, False), (1, True)]
    works_unchanged(biased, inputs, sizes, dynamic_arg_dims={"x": 0}, traces=2)


def test_a_size_given_as_an_integer_beside_the_tensor() -> None:
    def shaped(x: Tensor, rows: int) -> Tensor:
        return x.view(rows, -1) * 2

    works_unchanged(shaped, lambda rows: (torch.randn(rows, 4), rows), [2, 3], dynamic_arg_dims={}, traces=2)


@pytest.mark.parametrize("sizes", [SIZES, (1, 4), (5, 1)])
def test_a_second_tensor_of_the_same_unnamed_size(sizes: tuple[int, ...]) -> None:
    def added(x: Tensor, y: Tensor) -> Tensor:
        return x + y

    works_unchanged(added, lambda n: (torch.randn(n, 2), torch.randn(n, 2)), sizes, traces=1)


def test_broadcasting_that_was_not_traced_is_not_taken_for_granted() -> None:
    def added(x: Tensor, y: Tensor) -> Tensor:
        return x + y

    def inputs(size: tuple[int, int]) -> Inputs:
        return torch.randn(size[0], 2), torch.randn(size[1], 2)

    works_unchanged(added, inputs, [(3, 3), (3, 1), (1, 3), (1, 1), (4, 4)], traces=3)


def test_strict_guards_name_the_argument_that_changed() -> None:
    call = tp.compile(windowed, backend="eager", on_guard_failure="error")
    call(torch.randn(5, 2), 2)
    with pytest.raises(GuardError, match=r"count was 2, got 3"):
        call(torch.randn(5, 2), 3)


# -- decorated functions, whose code takes *args and **kwargs


class NoGrad(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    @torch.no_grad()
    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        return self.layer(x) if y is None else self.layer(x) * y


@pytest.mark.parametrize("traced_under", [torch.no_grad, torch.enable_grad])
def test_a_forward_under_a_decorator(traced_under: Callable[[], Any]) -> None:
    with traced_under():
        compiled = works_unchanged(NoGrad(), lambda n: (torch.randn(n, 2),))
        assert compiled.layer.weight is not None
        works_unchanged(
            NoGrad(),
            lambda n: {"x": torch.randn(n, 2), "y": torch.randn(n, 2)},
            dynamic_arg_dims={"x": 0, "y": 0},
        )


def tracked(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return call


@tracked
def decorated(x: Tensor, scale: float = 1.0, *, shift: Tensor | None = None) -> Tensor:
    return x * scale if shift is None else x * scale + shift


def test_arguments_of_a_decorated_function_by_position_and_by_name() -> None:
    def inputs(way: tuple[int, bool]) -> Inputs:
        x = torch.randn(way[0], 2)
        return {"shift": torch.randn(2), "x": x} if way[1] else (x, 3.0)

    ways = [(3, False), (1, False), (3, True), (1, True), (5, False)]
    works_unchanged(decorated, inputs, ways, dynamic_arg_dims={"x": 0}, traces=2)


def test_annotations_of_a_decorated_function_name_its_dims() -> None:
    works_unchanged(decorated, lambda n: (torch.randn(n, 2),))


@pytest.mark.parametrize("call", [(), (1, 2, 3, 4), {"z": 1}])
@pytest.mark.parametrize("function", [windowed, decorated, NoGrad()], ids=["plain", "decorated", "module"])
def test_a_call_with_other_arguments_is_refused_in_the_models_own_words(function: Any, call: Any) -> None:
    args, kwargs = ((), call) if isinstance(call, dict) else (call, {})
    with pytest.raises(TypeError) as own:
        function(*args, **kwargs)
    compiled = tp.compile(function, backend="eager")
    for _ in range(2):
        with pytest.raises(TypeError) as caught:
            compiled(*args, **kwargs)
        assert str(caught.value) == str(own.value)
        compiled(torch.randn(4, 2), *([2] if function is windowed else []))
    tp.program_of(compiled).restore()


def test_an_exception_that_the_model_raises_reaches_the_caller() -> None:
    def checked(x: Tensor, count: int) -> Tensor:
        if count > 2:
            raise KeyError(f"too many: {count}")
        return x * count

    compiled = tp.compile(checked, backend="eager")
    for _ in range(2):
        with pytest.raises(KeyError, match="too many: 3") as caught:
            compiled(torch.randn(3), 3)
        assert caught.value.__context__ is None
        assert torch.equal(compiled(torch.ones(3), 2), torch.full((3,), 2.0))
