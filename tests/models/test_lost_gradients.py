"""Cut ops that cannot pass gradients on: the backward pass says so, the forward pass works."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torch_piecewise as tp
from tests.models.checks import assert_same
from torch_piecewise.errors import SplitError

LIBRARY = torch.library.Library("lost", "FRAGMENT")
LIBRARY.define("returned(Tensor x) -> Tensor")
LIBRARY.define("written(Tensor x, Tensor(a!) out) -> ()")


@torch.library.impl(LIBRARY, "returned", "CPU")
def _returned(x: Tensor) -> Tensor:
    return x.detach().sin()


@torch.library.impl(LIBRARY, "written", "CPU")
def _written(x: Tensor, out: Tensor) -> None:
    out.copy_(x.detach().sin())


torch.library.register_fake("lost::returned", torch.empty_like)
torch.library.register_fake("lost::written", lambda x, out: None)


@torch.library.custom_op("lost::custom_written", mutates_args=("out",))
def custom_written(x: Tensor, out: Tensor) -> None:
    out.copy_(x.sin())


@torch.library.custom_op("lost::custom_returned", mutates_args=())
def custom_returned(x: Tensor) -> Tensor:
    return x.sin()


custom_returned.register_fake(torch.empty_like)


def into(op: Callable[[Tensor, Tensor], None]) -> Callable[[Tensor], Tensor]:
    def call(x: Tensor) -> Tensor:
        out = torch.empty_like(x)
        op(x, out)
        return out

    return call


OPS: dict[str, Callable[[Tensor], Tensor]] = {
    "lost::returned": torch.ops.lost.returned,
    "lost::written": into(torch.ops.lost.written),
    "lost::custom_written": into(custom_written),
}


class Net(nn.Module):
    """Layers around an op, with a way past it."""

    def __init__(self, op: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.op = op
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first = self.first(x)
        return first + self.second(self.op(first)[:, :4]), first.exp()


def compiled(op: str, **fields: Any) -> nn.Module:
    return tp.compile(Net(OPS[op]), **{"backend": "eager", "splitting_ops": [op], **fields})


@pytest.mark.parametrize("op", OPS)
@pytest.mark.filterwarnings("ignore:lost::returned")
def test_a_backward_pass_through_a_cut_op_without_a_formula_is_an_error(op: str) -> None:
    model = compiled(op)
    result, _ = model(torch.randn(3, 4))
    with pytest.raises(SplitError) as caught:
        result.sum().backward()
    assert str(caught.value) == (
        f"{op} passes no gradient on, but one has to go back through it\n"
        "  expected: an op with a backward formula, or inputs that need no gradient\n"
        "  got: a backward pass from a result that depends on it\n"
        "  to do: let it return its result and give it a formula (torch.library.register_autograd); where no "
        "gradient is wanted, call it under torch.no_grad() or detach its inputs"
    )
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("op", OPS)
def test_a_forward_pass_with_grad_mode_on_works(op: str) -> None:
    model = compiled(op)
    x = torch.randn(3, 4)
    with tp.program_of(model).counters.expect(graphs_captured=1, cuts=1):
        assert_same(model(x), model.forward(x))


@pytest.mark.parametrize("op", OPS)
@pytest.mark.filterwarnings("ignore:lost::returned")
def test_results_that_do_not_depend_on_the_op_have_their_gradients(op: str) -> None:
    model, reference = compiled(op), Net(OPS[op])
    reference.load_state_dict(model.state_dict())
    x = torch.randn(3, 4)
    for one in (model, reference):
        one(x)[1].sum().backward()
    assert_same(model.first.weight.grad, reference.first.weight.grad)


@pytest.mark.parametrize("op", OPS)
def test_layers_after_the_op_train_where_nothing_before_it_does(op: str) -> None:
    model = Net(OPS[op])
    model.first.requires_grad_(False)
    trained = tp.compile(copy.deepcopy(model), backend="eager", splitting_ops=[op])
    x = torch.randn(3, 4)
    for one in (model, trained):
        one(x)[0].sum().backward()
    assert_same(trained.second.weight.grad, model.second.weight.grad)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("way", ["no_grad", "detach"])
def test_an_op_whose_gradient_is_not_wanted_is_none_that_loses_it(op: str, way: str) -> None:
    def off(x: Tensor) -> Tensor:
        if way == "detach":
            return OPS[op](x.detach())
        with torch.no_grad():
            return OPS[op](x)

    model = Net(off)
    trained = tp.compile(copy.deepcopy(model), backend="eager", splitting_ops=[op])
    x = torch.randn(3, 4)
    for one in (model, trained):
        one(x)[0].sum().backward()
    assert_same([p.grad for p in trained.parameters()], [p.grad for p in model.parameters()])


def test_without_gradients_nothing_is_added() -> None:
    model = compiled("lost::written")
    with torch.no_grad():
        model(torch.randn(3, 4))
    assert "refuse_backward" not in tp.program_of(model).entries[0].program.stitched.source
    model(torch.randn(3, 4))
    assert "refuse_backward" in tp.program_of(model).entries[0].program.stitched.source


def test_an_op_that_says_so_itself_is_left_to_do_so() -> None:
    model = tp.compile(Net(custom_returned), backend="eager", splitting_ops=["lost::custom_returned"])
    result, _ = model(torch.randn(3, 4))
    assert "refuse_backward" not in tp.program_of(model).entries[0].program.stitched.source
    with pytest.raises(RuntimeError, match="no autograd formula was registered"):
        result.sum().backward()


def test_a_cut_function_of_torch_keeps_its_gradients() -> None:
    model = Net(torch.sin)
    trained = tp.compile(copy.deepcopy(model), backend="eager", splitting_ops=["torch.sin"])
    x = torch.randn(3, 4)
    for one in (model, trained):
        one(x)[0].sum().backward()
    assert tp.program_of(trained).stats.cuts == 1
    assert_same([p.grad for p in trained.parameters()], [p.grad for p in model.parameters()])
