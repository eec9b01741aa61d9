"""The shapes that calls have: what goes in, what comes out, and what is refused, on fresh inputs."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import torch_piecewise as tp
from tests.models.checks import assert_same
from torch_piecewise.errors import GuardError

EAGER: dict[str, Any] = {"backend": "eager", "disable_cache": True, "splitting_ops": []}


@pytest.fixture(autouse=True)
def _inference(no_grad: None) -> None:
    """Bundles serve calls without gradients."""


def started(
    model: nn.Module, path: Path, args: tuple[Any, ...], kwargs: dict[str, Any], **fields: Any
) -> nn.Module:
    tp.bake(model, args, path, example_kwargs=kwargs, **{**EAGER, **fields})
    return tp.load(path, copy.deepcopy(model))


class Nested(nn.Module):
    def forward(self, x: Tensor, batch: dict[str, Any], masks: list[Tensor]) -> dict[str, Any]:
        x = x * masks[0] + batch["more"]["bias"] - batch["scale"]
        return {"out": {"x": x, "rest": [masks[1] + 1, None]}, "rows": x.shape[0]}


def nested(rows: int) -> tuple[Any, ...]:
    batch = {"scale": torch.randn(4), "more": {"bias": torch.randn(4)}}
    return torch.randn(rows, 4), batch, [torch.randn(4), torch.randn(3)]


def test_nested_dicts_and_lists_of_tensors(tmp_path: Path) -> None:
    model = Nested()
    serves = started(model, tmp_path / "b", nested(5), {}, dynamic_arg_dims={"x": 0})
    for rows in (5, 1, 7):
        call = nested(rows)
        assert_same(serves(*call), model(*call), f"at {rows}")
    for change in (
        lambda x, batch, masks: (x, {**batch, "more": {}}, masks),
        lambda x, batch, masks: (x, batch, masks[:1]),
        lambda x, batch, masks: (x, batch, [masks[0], masks[1].double()]),
        lambda x, batch, masks: (x, batch, tuple(masks)),
    ):
        with pytest.raises(GuardError, match="not one that the bundle was baked for"):
            serves(*change(*nested(5)))
    x, batch, masks = nested(5)
    with pytest.raises(GuardError, match=r"batch\['more'\]\['bias'\] was .*, got nothing"):
        serves(x, {**batch, "more": {}}, masks)


@dataclasses.dataclass
class Output:
    hidden: Tensor
    rest: Any = None


class Point(NamedTuple):
    x: Tensor
    y: Any


class Structures(nn.Module):
    def forward(self, x: Tensor) -> Any:
        return Output(x * 2, rest={"p": Point(x + 1, None)}), (None, 3, 2.5, "text", True, x.shape[1] * 2), x


def test_dataclasses_named_tuples_none_and_numbers_come_out(tmp_path: Path) -> None:
    serves = started(Structures(), tmp_path / "b", (torch.randn(3, 4),), {}, dynamic_arg_dims={"x": [0, 1]})
    for shape in ((3, 4), (5, 2), (1, 7)):
        x = torch.randn(shape)
        output, numbers, same = serves(x)
        assert type(output) is Output
        assert type(output.rest["p"]) is Point
        assert output.rest["p"].y is None
        assert_same((output.hidden, output.rest["p"].x), (x * 2, x + 1))
        assert numbers == (None, 3, 2.5, "text", True, 2 * shape[1])
        assert [type(one) for one in numbers] == [type(None), int, float, str, bool, int]
        assert same is x


class Nothing(nn.Module):
    """Changes its argument and returns nothing."""

    def forward(self, x: Tensor) -> None:
        x.mul_(2)


def test_a_call_that_returns_nothing_still_changes_what_it_is_given(tmp_path: Path) -> None:
    serves = started(Nothing(), tmp_path / "b", (torch.randn(3, 4),), {}, dynamic_arg_dims={"x": 0})
    x = torch.randn(5, 4)
    want = x * 2
    assert serves(x) is None
    assert_same(x, want)


class Keywords(nn.Module):
    def forward(
        self, x: Tensor, /, y: Tensor | None = None, *, scale: float = 1.0, mask: Tensor | None = None
    ) -> Tensor:
        x = x * scale if y is None else x * scale + y
        return x if mask is None else x * mask


def test_keyword_only_and_optional_arguments(tmp_path: Path) -> None:
    model, x = Keywords(), torch.randn(3, 4)
    kwargs: dict[str, Any] = {"scale": 2.0, "mask": torch.randn(3, 4)}
    dims = {"x": 0, "mask": 0}
    serves = started(model, tmp_path / "b", (x,), kwargs, dynamic_arg_dims=dims)
    for rows in (3, 6):
        given = {"scale": 2.0, "mask": torch.randn(rows, 4)}
        x = torch.randn(rows, 4)
        assert_same(serves(x, **given), model(x, **given))
        assert_same(serves(x, None, **given), model(x, None, **given))
    for args, wrong, reason in (
        ((x,), {"scale": 2.0}, "mask was torch.float32.*got NoneType"),
        ((x,), {**given, "scale": 3.0}, r"scale was 2\.0"),
        ((x, torch.randn(6, 4)), given, "y was None"),
        ((x,), {**given, "mask": torch.randn(5, 4)}, "sizes|mask|x"),
    ):
        with pytest.raises(GuardError, match=reason):
            serves(*args, **wrong)
    with pytest.raises(TypeError, match=r"Keywords\.forward\(\) got some positional-only arguments"):
        serves(x=x, **given)


class Variadic(nn.Module):
    def forward(self, x: Tensor, *xs: Tensor, **named: Tensor) -> Tensor:
        return x + torch.stack(xs).sum(0) * named["scale"]


def test_any_number_of_arguments_is_the_number_that_was_baked(tmp_path: Path) -> None:
    model = Variadic()

    def call() -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        return (torch.randn(3, 4), torch.randn(4), torch.randn(4)), {"scale": torch.randn(4)}

    args, kwargs = call()
    serves = started(model, tmp_path / "b", args, kwargs, dynamic_arg_dims={"x": 0})
    args, kwargs = call()
    assert_same(serves(*args, **kwargs), model(*args, **kwargs))
    with pytest.raises(GuardError):
        serves(*args, args[1], **kwargs)
    with pytest.raises(GuardError):
        serves(*args, other=args[1])


class Attend(nn.Module):
    def forward(self, q: Tensor, k: Tensor) -> Tensor:
        return torch.softmax(q @ k.transpose(1, 2), -1)


def test_several_dynamic_dims_some_of_them_one_size(tmp_path: Path) -> None:
    model = Attend()
    dims = {"q": {0: "batch", 1: "query"}, "k": {0: "batch", 1: "key"}}
    serves = started(
        model,
        tmp_path / "b",
        (torch.randn(2, 3, 4), torch.randn(2, 5, 4)),
        {},
        dynamic_arg_dims=dims,
        dispatch_on="q.1",
        compile_ranges_endpoints=[8],
    )
    for batch, query, key in ((2, 3, 5), (7, 1, 4), (1, 9, 9), (3, 20, 1)):
        call = torch.randn(batch, query, 4), torch.randn(batch, key, 4)
        assert_same(serves(*call), model(*call), f"at {(batch, query, key)}")
    with pytest.raises(GuardError):
        serves(torch.randn(2, 3, 4), torch.randn(3, 3, 4))


class SmallApart(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sin() + 1 if x.shape[0] < 20 else x.cos()


def test_a_bundle_holds_the_ranges_that_its_calls_can_have(tmp_path: Path) -> None:
    model = SmallApart()
    serves = started(
        model,
        tmp_path / "b",
        (torch.randn(5, 4),),
        {},
        dynamic_arg_dims={"x": 0},
        compile_ranges_endpoints=[1, 8, 64],
        compile_sizes=[12, 32],
    )
    for size in (1, 5, 12, 19):
        x = torch.randn(size, 4)
        assert_same(serves(x), model(x), f"at {size}")
    for size in (20, 32, 70):
        with pytest.raises(GuardError):
            serves(torch.randn(size, 4))
    with pytest.raises(GuardError, match=r"(?s)expected: a size in \[1, 1\], \[2, 8\], \[9, 64\].*got"):
        serves(torch.randn(0, 4))
