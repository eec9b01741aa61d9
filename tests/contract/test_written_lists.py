"""Lists and dicts that a model or its hooks write to hold after each call what they hold uncompiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torch_piecewise as tp

pytestmark = pytest.mark.usefixtures("no_grad")

LOG: list[int] = []


class Keeps(nn.Module):
    """Appends to a list of its own, and counts in another."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []
        self.counts = [0, 5]

    def forward(self, x: Tensor) -> Tensor:
        self.counts[0] = self.counts[0] + 1
        y = torch.relu(x) + self.counts[0]
        self.seen.append(y)
        return y


def logs(x: Tensor) -> Tensor:
    LOG.append(len(LOG))
    return torch.relu(x) + len(LOG)


def hooked() -> tuple[Callable[..., Any], list[Any]]:
    model, calls = nn.ReLU(), []
    model.register_forward_hook(lambda _module, _inputs, result: calls.append(result))
    return model, calls


def compiled(target: Any, name: str) -> Any:
    return tp.compile(
        target, backend="eager", splitting_ops=["aten::relu"], disable_cache=True, dynamic_arg_dims={name: 0}
    )


def test_lists_of_the_model() -> None:
    model, plain = compiled(Keeps(), "x"), Keeps()
    for size in (3, 3, 5):
        x = torch.randn(size, 4)
        assert torch.equal(model(x), plain(x))
        assert model.counts == plain.counts
        assert len(model.seen) == len(plain.seen)
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(model.seen, plain.seen, strict=True))


def test_a_list_of_the_module_around_a_function() -> None:
    LOG[:] = [7, 8]
    run = compiled(logs, "x")
    for size in (3, 3, 5):
        x, before = torch.randn(size, 4), list(LOG)
        got = run(x)
        after, LOG[:] = list(LOG), before
        assert torch.equal(got, logs(x))
        assert after == LOG


def test_a_list_that_a_hook_closes_over() -> None:
    model, calls = hooked()
    compiled(model, "input")
    for count, size in enumerate((3, 3, 5), 1):
        x = torch.randn(size, 4)
        model(x)
        assert len(calls) == count
        assert torch.equal(calls[-1], torch.relu(x))


def test_lists_that_nobody_writes_to_are_not_looked_at() -> None:
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factors = [2, 3]

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(x) * self.factors[0] * len(self.factors)

    model = compiled(Reads(), "x")
    model(torch.randn(3, 4))
    (entry,) = tp.program_of(model).entries
    assert "factors" not in entry.source
