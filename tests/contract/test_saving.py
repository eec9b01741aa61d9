"""``handle.save``: from a model that runs to a bundle that starts elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torch_piecewise as tp
from torch_piecewise.errors import ConfigError, GuardError
from torch_piecewise.example_call import ExampleCall

pytestmark = pytest.mark.usefixtures("no_grad")

SETTINGS: dict[str, Any] = {"backend": "eager", "splitting_ops": ["aten::relu"], "disable_cache": True}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(
        self, x: Tensor, *, extra: tuple[Tensor, dict[str, Tensor]] | None = None, by: int = 1
    ) -> Tensor:
        y: Tensor = torch.relu(self.layer(x)) * by
        return y if extra is None else y + extra[0] * extra[1]["scale"]


def test_a_bundle_of_a_running_model_starts_another_one(tmp_path: Path) -> None:
    model, other = tp.compile(Net(), **SETTINGS), Net()
    model(torch.randn(3, 4))
    handle = tp.program_of(model)
    with handle.counters.expect(graphs_captured=0, artifacts_compiled=0):
        assert handle.save(tmp_path / "b.tpb") is None  # type: ignore[func-returns-value]
    other.load_state_dict(model.state_dict())
    tp.load(tmp_path / "b.tpb", other)
    for size in (3, 1, 8):
        x = torch.randn(size, 4)
        assert torch.equal(other(x), model(x))


def test_the_newest_call_is_saved_with_its_keywords_and_containers(tmp_path: Path) -> None:
    model, other = tp.compile(Net(), **SETTINGS), Net()
    model(torch.randn(3, 4))
    extra = (torch.randn(1, 4), {"scale": torch.randn(4)})
    model(torch.randn(3, 4), extra=extra, by=2)
    tp.program_of(model).save(str(tmp_path / "b"))
    other.load_state_dict(model.state_dict())
    tp.load(tmp_path / "b", other)
    x = torch.randn(3, 4)
    assert torch.equal(other(x, extra=extra, by=2), model(x, extra=extra, by=2))


def test_a_call_can_be_given_instead(tmp_path: Path) -> None:
    model = tp.compile(Net(), **SETTINGS)
    with pytest.raises(GuardError) as refused:
        tp.program_of(model).save(tmp_path / "b")
    assert str(refused.value) == (
        "Nothing has been traced yet\n"
        "  expected: one call before save(path), or save(path, example_inputs=(x,))\n"
        "  to do: call the model once, or give the arguments of one call"
    )
    tp.program_of(model).save(tmp_path / "b", example_inputs=[torch.randn(3, 4)])
    x = torch.randn(5, 4)
    assert torch.equal(tp.load(tmp_path / "b", model)(x), torch.relu(model.layer(x)))


def test_what_a_bundle_is_not_is_refused_with_what_to_write(tmp_path: Path) -> None:
    model = tp.compile(Net(), **SETTINGS, cudagraph_mode="piecewise")
    with pytest.raises(ConfigError) as refused:
        tp.program_of(model).save(tmp_path / "b", example_inputs=(torch.randn(3, 4),))
    assert str(refused.value) == (
        "A bundle does not replay static graphs\n"
        "  expected: cudagraph_mode='none'\n"
        "  got: cudagraph_mode='PIECEWISE'\n"
        "  to do: save(path, cudagraph_mode='none') writes the pieces without them"
    )
    tp.program_of(model).save(tmp_path / "b", example_inputs=(torch.randn(3, 4),), cudagraph_mode="none")
    assert (tmp_path / "b").is_file()


def test_a_compiler_that_a_bundle_cannot_hold_is_told_which_can(tmp_path: Path) -> None:
    model = tp.compile(Net(), **{**SETTINGS, "backend": "torch_piecewise.testing.RecordingCompiler"})
    model(torch.randn(3, 4))
    with pytest.raises(ConfigError) as refused:
        tp.program_of(model).save(tmp_path / "b")
    assert str(refused.value) == (
        "A bundle cannot hold what this compiler makes\n"
        "  expected: 'aot_inductor' or 'eager'\n"
        "  got: backend='torch_piecewise.testing.RecordingCompiler'\n"
        "  to do: save(path, backend='aot_inductor') compiles the pieces anew with that one"
    )
    tp.program_of(model).save(tmp_path / "b", backend="eager")
    assert (tmp_path / "b").is_file()


def test_a_function_is_told_to_become_a_module(tmp_path: Path) -> None:
    def run(x: Tensor) -> Tensor:
        return torch.relu(x)

    with pytest.raises(ConfigError, match="A bundle holds the call of a module") as refused:
        tp.program_of(tp.compile(run, **SETTINGS)).save(tmp_path / "b")
    assert "got: that of the function test_a_function_is_told_to_become_a_module.<locals>.run" in str(
        refused.value
    )


def test_an_example_keeps_layout_identity_and_plain_values_and_no_tensor() -> None:
    x = torch.randn(3, 4, dtype=torch.float64).t()
    sketch = ExampleCall.of((x, [x, torch.tensor(3)], 2.5), {"k": (None, "word"), "e": torch.empty(0, 4)})
    assert not any(isinstance(leaf, Tensor) for leaf in sketch.leaves)
    args, kwargs = sketch.make()
    assert args[0] is args[1][0]
    assert (args[0].shape, args[0].stride(), args[0].dtype) == (x.shape, x.stride(), x.dtype)
    assert (args[1][1].shape, args[1][1].dtype, args[2]) == ((), torch.int64, 2.5)
    assert (kwargs["k"], kwargs["e"].shape) == ((None, "word"), (0, 4))
    broadcast = torch.randn(3, 1).expand(3, 4)
    assert ExampleCall.of((broadcast,), {}).make()[0][0].stride() == (1, 0)


def test_an_argument_that_cannot_be_made_again_is_named() -> None:
    with pytest.raises(ConfigError) as refused:
        ExampleCall.of((object(),), {}).make()
    assert str(refused.value) == (
        "The call that was traced cannot be made again\n"
        "  expected: dense tensors and plain values, in tuples, lists and dicts\n"
        "  got: an argument of type builtins.object\n"
        "  to do: give the arguments of one call: save(path, example_inputs=...)"
    )
