"""Training through the pieces: every gradient is eager's, bit for bit."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

import torch_piecewise as tp
from tests.graphs import attention
from tests.models.checks import assert_same
from torch_piecewise.errors import SplitError

CUTS = [[], ["torch.nn.functional.scaled_dot_product_attention"], ["torch.nn.functional.gelu"]]


class Net(nn.Module):
    """Attention and feed-forward; ``checkpointed`` recomputes each layer in the backward pass."""

    def __init__(self, depth: int = 2, width: int = 8, *, checkpointed: bool = False) -> None:
        super().__init__()
        self.checkpointed = checkpointed
        self.layers = nn.ModuleList(
            nn.ModuleDict(
                {
                    "mix": nn.Linear(width, 3 * width),
                    "feed": nn.Linear(width, width),
                    "norm": nn.LayerNorm(width),
                }
            )
            for _ in range(depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = (
                checkpoint(self._layer, layer, x, use_reentrant=False)
                if self.checkpointed
                else self._layer(layer, x)
            )
        return x

    def _layer(self, layer: nn.ModuleDict, x: Tensor) -> Tensor:
        query, key, value = layer["mix"](layer["norm"](x)).chunk(3, -1)
        x = x + functional.scaled_dot_product_attention(query, key, value)
        return x + functional.gelu(layer["feed"](x))


def gradients_match(
    model: nn.Module,
    inputs_of: Callable[[int], tuple[Any, ...]],
    loss_of: Callable[[Any], Tensor] = lambda result: result.pow(2).mean(),
    *,
    tolerance: float = 0.0,
    traces: int = 1,
    **fields: Any,
) -> nn.Module:
    """A training step at each of several sizes: losses, gradients and updated weights agree."""
    reference = copy.deepcopy(model)
    compiled = tp.compile(model, **{"backend": "eager", **fields})
    optimizers = [torch.optim.SGD(one.parameters(), lr=0.1) for one in (reference, compiled)]
    for size in (3, 1, 5):
        steps = [_step(one, inputs_of, size, loss_of) for one in (reference, compiled)]
        assert_same(steps[1], steps[0], f"gradients at {size}", tolerance)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        assert_same(
            list(compiled.parameters()), list(reference.parameters()), f"weights after {size}", tolerance
        )
    assert tp.program_of(compiled).stats.traces == traces
    return compiled


def _step(
    model: nn.Module, inputs_of: Callable[[int], tuple[Any, ...]], size: int, loss_of: Callable[[Any], Tensor]
) -> dict[str, Any]:
    torch.manual_seed(size)
    inputs = inputs_of(size)
    loss = loss_of(model(*inputs))
    loss.backward()
    return {
        "loss": loss.detach(),
        "parameters": {name: tensor.grad for name, tensor in model.named_parameters()},
        "inputs": [one.grad for one in inputs if isinstance(one, Tensor)],
    }


def batch(n: int) -> tuple[Tensor]:
    return (torch.randn(n, 4, 8),)


@pytest.mark.parametrize("splitting_ops", CUTS, ids=["uncut", "attention", "gelu"])
def test_a_training_step(splitting_ops: list[str]) -> None:
    compiled = gradients_match(Net(), batch, splitting_ops=splitting_ops)
    assert tp.program_of(compiled).stats.cuts == (2 if splitting_ops else 0)


def test_gradients_of_inputs() -> None:
    gradients_match(Net(), lambda n: (torch.randn(n, 4, 8, requires_grad=True),))


def test_frozen_parameters_get_no_gradient() -> None:
    model = Net()
    for parameter in model.layers[0].parameters():
        parameter.requires_grad_(False)
    compiled = gradients_match(model, batch)
    assert compiled.layers[0]["feed"].weight.grad is None


def test_parameters_frozen_after_the_first_step() -> None:
    model = Net(1)
    compiled = tp.compile(copy.deepcopy(model), backend="eager")
    for frozen in (False, True, False):
        for one in (model, compiled):
            one.layers[0]["feed"].requires_grad_(not frozen)
        steps = [_step(one, batch, 3, torch.sum) for one in (model, compiled)]
        assert_same(steps[1], steps[0])
        for one in (model, compiled):
            one.zero_grad()


def test_gradient_checkpointing() -> None:
    gradients_match(Net(checkpointed=True), batch)


def test_dropout_takes_the_same_places_backward_as_forward() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 8))
    gradients_match(
        model, batch, dynamic_arg_dims={"input": 0}, splitting_ops=["torch.nn.functional.dropout"]
    )


def test_a_custom_autograd_function() -> None:
    class Straight(torch.autograd.Function):
        @staticmethod
        def forward(_ctx: Any, x: Tensor) -> Tensor:
            return x.round()

        @staticmethod
        def backward(_ctx: Any, gradient: Tensor) -> Tensor:
            return gradient * 3

    class Rounded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return Straight.apply(self.layer(x) * 4)

    gradients_match(Rounded(), batch)


@tp.splitting_op("tests::doubled_sine", fake=torch.empty_like)
def doubled_sine(x: Tensor) -> Tensor:
    """A cut op that returns its result and has a gradient."""
    return 2 * torch.sin(x)


doubled_sine.register_autograd(
    lambda ctx, gradient: 2 * gradient * torch.cos(ctx.saved_tensors[0]),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(inputs[0]),
)


def test_a_cut_op_with_a_gradient_of_its_own() -> None:
    class Waves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = x + doubled_sine(layer(x))
            return x

    compiled = gradients_match(Waves(), batch, splitting_ops=["tests::doubled_sine"])
    assert tp.program_of(compiled).stats.cuts == 3


def test_a_cut_op_without_a_gradient_refuses_as_it_does_uncompiled() -> None:
    class Ended(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            y = self.layer(x)
            out = torch.empty_like(y)
            attention(y, y, y, out, "0")
            return out

    model = Ended()
    compiled = tp.compile(copy.deepcopy(model), backend="eager", splitting_ops=["tests::attention"])
    for one in (model, compiled):
        with pytest.raises(SplitError, match="passes no gradient on, but 'q', 'k', 'v' needs one"):
            one(torch.randn(3, 8))


def test_a_loss_of_several_results() -> None:
    class Several(Net):
        def forward(self, x: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
            y = super().forward(x)
            return {"whole": y, "part": y[:, 1:], "detached": y.detach(), "input": x}

    gradients_match(
        Several(), batch, lambda out: out["whole"].sum() + (out["part"] * out["detached"][:, 1:]).sum()
    )


def test_two_forward_passes_before_one_backward() -> None:
    model = Net(1)
    compiled = tp.compile(copy.deepcopy(model), backend="eager")
    (x,) = batch(3)
    for one in (model, compiled):
        (one(x).sum() + one(x * 2).pow(2).sum()).backward()
    assert_same([p.grad for p in compiled.parameters()], [p.grad for p in model.parameters()])


def test_gradients_of_gradients() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))
    compiled = tp.compile(copy.deepcopy(model), backend="eager", dynamic_arg_dims={"input": 0})
    seconds = []
    for one in (model, compiled):
        torch.manual_seed(0)
        x = torch.randn(3, 8, requires_grad=True)
        (first,) = torch.autograd.grad(one(x).sum(), x, create_graph=True)
        seconds.append(torch.autograd.grad(first.pow(2).sum(), [x, *one.parameters()], allow_unused=True))
    assert_same(seconds[1], seconds[0])


def test_mixed_precision_training() -> None:
    class Half(Net):
        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return super().forward(x).float()

    gradients_match(Half(), batch)


def test_training_then_serving_then_training() -> None:
    model = Net(1)
    compiled = tp.compile(copy.deepcopy(model), backend="eager")
    for training in (True, False, True):
        with torch.set_grad_enabled(training):
            steps = []
            for one in (model, compiled):
                torch.manual_seed(0)
                result = one.train(training)(*batch(3))
                if training:
                    result.sum().backward()
                steps.append([result, *(p.grad for p in one.parameters())])
        assert_same(steps[1], steps[0])
    assert tp.program_of(compiled).stats.traces == 2
