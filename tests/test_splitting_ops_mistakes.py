"""What people get wrong about ``tp.splitting_op``, and the whole of what they are told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import torch_piecewise as tp
from torch_piecewise.errors import SplitError

KNOWN = "Tensor, int, float, bool, str, torch.dtype, torch.device, lists and optionals of them"


def writes(x: Tensor, out: Tensor) -> None:
    out.copy_(x)


def counts(x: Tensor, n: int) -> Tensor:
    return x * n


def silent(x: Tensor, out: Tensor):  # type: ignore[no-untyped-def]
    out.copy_(x)


def bare(x, out):  # type: ignore[no-untyped-def]
    out.copy_(x)


def spread(*x: Tensor) -> Tensor:
    return x[0].clone()


def mapped(x: Tensor, by: dict) -> Tensor:  # type: ignore[type-arg]
    return x.clone()


async def later(x: Tensor) -> Tensor:
    return x.clone()


class Holder:
    def method(self, x: Tensor) -> Tensor:
        return x.clone()


@tp.splitting_op("mistakes::known", mutates_args=("out",))
def known(x: Tensor, out: Tensor) -> None:
    out.copy_(x)


@torch.library.custom_op("mistakes::custom", mutates_args=())
def custom(x: Tensor) -> Tensor:
    return x.clone()


def told(body: Any, name: Any = "mistakes::op", **options: Any) -> str:
    with pytest.raises(SplitError) as caught:
        tp.splitting_op(name, **options)(body)
    return str(caught.value)


@pytest.mark.parametrize(
    ("given", "first", "hint"),
    [
        ("out", "mistakes::op: mutates_args is one string", "write mutates_args=('out',)"),
        (
            None,
            "mistakes::op: mutates_args is no list of argument names",
            'write mutates_args=("out",), or leave it out where nothing is written to',
        ),
        (
            (1,),
            "mistakes::op: mutates_args is no list of argument names",
            'write mutates_args=("out",), or leave it out where nothing is written to',
        ),
    ],
)
def test_mutates_args_that_are_no_list_of_names(given: Any, first: str, hint: str) -> None:
    assert told(writes, mutates_args=given) == (
        f"{first}\n  expected: a tuple or list of argument names\n  got: {given!r}\n  to do: {hint}"
    )


def test_mutates_args_that_name_no_parameter() -> None:
    assert told(writes, mutates_args=("outt",)) == (
        "mistakes::op: mutates_args names 'outt', which writes does not have\n"
        "  expected: names out of (x, out)\n"
        "  got: 'outt'\n"
        "  to do: did you mean 'out'?"
    )


def test_mutates_args_that_name_a_number() -> None:
    assert told(counts, mutates_args=("n",), fake=torch.empty_like) == (
        "mistakes::op: mutates_args names 'n', which is no tensor\n"
        "  expected: a parameter that is a Tensor or a list of them\n"
        "  got: n: int\n"
        "  to do: leave 'n' out of mutates_args: only tensors are written to"
    )


@pytest.mark.parametrize(
    ("body", "called", "names", "hint"),
    [
        (bare, "bare", "x, out", "write x: torch.Tensor"),
        (lambda x, out: None, "a lambda", "x, out", "write a def, for a lambda cannot have annotations"),
        (Holder.method, "Holder.method", "self", "write a function, for an op has no self"),
    ],
)
def test_parameters_without_annotations(body: Any, called: str, names: str, hint: str) -> None:
    assert told(body) == (
        f"mistakes::op: {called} has parameters without annotations\n"
        f"  expected: each one annotated: {KNOWN}\n"
        f"  got: {names}\n"
        f"  to do: {hint}, or give schema='(Tensor x, ...) -> ...'"
    )


def test_a_result_without_annotation() -> None:
    assert told(silent, mutates_args=("out",)) == (
        "mistakes::op: silent does not say what it returns\n"
        "  expected: -> None where it writes its result, else -> torch.Tensor or a tuple or list of them\n"
        "  got: def silent(x: 'Tensor', out: 'Tensor')\n"
        "  to do: annotate the result, or give schema='(Tensor x, ...) -> ...'"
    )


def test_parameters_that_an_op_cannot_have() -> None:
    assert told(spread, fake=torch.empty_like) == (
        "mistakes::op: spread has parameters that an op cannot have\n"
        "  expected: parameters that can be given by position and by name\n"
        "  got: *x: 'Tensor'\n"
        "  to do: name each argument; several tensors can come as one list[Tensor]"
    )


def test_an_annotation_that_torch_does_not_know_is_told_without_all_that_it_knows() -> None:
    text = told(mapped, fake=torch.empty_like)
    assert text.splitlines()[:2] == [
        "mistakes::op: no schema can be made from the signature of mapped",
        f"  expected: annotations that torch knows ({KNOWN})",
    ]
    assert "Parameter by has unsupported type" in text
    assert len(text) < 400


@pytest.mark.parametrize(
    ("body", "hint"),
    [
        (known, "it is an op already: use one decorator, on the function itself"),
        (custom, "it is an op already: use one decorator, on the function itself"),
        (Holder().method, "an op has no self: write a function, and pass what it needs of the object"),
        (torch.nn.Linear(2, 2), "wrap the call in a function with annotated parameters"),
        (Holder, "wrap the call in a function with annotated parameters"),
        (3, "put the decorator above a def"),
    ],
)
def test_what_is_no_function(body: Any, hint: str) -> None:
    assert told(body, mutates_args=("out",)) == (
        "mistakes::op was given something that is not a Python function\n"
        "  expected: a function made with def\n"
        f"  got: {body!r}\n"
        f"  to do: {hint}"
    )


def test_a_function_that_does_not_run_when_it_is_called() -> None:
    assert told(later, fake=torch.empty_like) == (
        "mistakes::op: later does not run when it is called\n"
        "  expected: a plain function, which returns when its work is done\n"
        "  got: an async function"
    )


def test_a_fake_that_cannot_be_called() -> None:
    assert told(counts, fake=3) == (
        "mistakes::op: its fake is nothing that can be called\n"
        "  expected: a function that makes empty outputs of the right sizes\n"
        "  got: 3 (int)\n"
        "  to do: leave fake out, or give one: fake=lambda q, k, v: torch.empty_like(q)"
    )


def test_the_decorator_without_a_name_says_how_it_is_used() -> None:
    text = told(writes, name=writes)
    assert 'expected: @splitting_op("namespace::name", mutates_args=(...))' in text
    assert "to do: call it with the name first, and decorate the function with what it returns" in text


@pytest.mark.parametrize("name", ["attention", "mylib::as", "in::attention"])
def test_a_name_that_torch_would_not_read(name: str) -> None:
    assert told(writes, name=name) == (
        f"{name!r} cannot be the name of an op\n"
        "  expected: namespace::name, each a Python identifier and no keyword\n"
        f"  got: {name!r}\n"
        "  to do: choose a namespace of your own: 'mylib::attention'"
    )


def test_the_same_function_twice_is_one_op() -> None:
    decorate: Callable[..., Any] = tp.splitting_op("mistakes::again", mutates_args=("out", "out"))
    assert decorate(writes) is decorate(writes)
