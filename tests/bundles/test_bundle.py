"""What a started bundle computes: what the model itself computes, on fresh inputs, at every size."""

from __future__ import annotations

import copy
import dataclasses
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import torch_piecewise as tp
from tests.bundles import served
from tests.bundles.conftest import Rewrite
from tests.models.checks import assert_same
from torch_piecewise.errors import BundleError, ConfigError, GuardError

EAGER: dict[str, Any] = {"backend": "eager", "disable_cache": True}


def serves(
    model: nn.Module, path: Path, example: tuple[Any, ...], calls: Sequence[tuple[Any, ...]], **fields: Any
) -> nn.Module:
    """Bake ``model``, start a copy of it from the bundle, and compare them call by call."""
    served_model = copy.deepcopy(model)
    tp.bake(copy.deepcopy(model), example, path, **{**EAGER, **fields})
    assert tp.load(path, served_model) is served_model
    with torch.no_grad():
        for call in calls:
            mine = copy.deepcopy(call)
            assert_same(served_model(*mine), model(*call), f"result of {call}")
            assert_same(mine, call, "inputs after the call")
            assert_same(dict(served_model.named_buffers()), dict(model.named_buffers()), "buffers")
    return served_model


def test_a_cut_model_at_sizes_of_every_range(baked: Path, lm: nn.Module, no_grad: None) -> None:
    started = tp.load(baked, copy.deepcopy(lm))
    for size in (5, 1, 2, 8, 9, 40, 1):
        (ids,) = served.example("LM", size)
        assert_same(started(ids), lm(ids), f"at {size}")


def test_attention_that_torch_knows_and_two_symbols(tmp_path: Path) -> None:
    calls = [(torch.randn(b, s, 16),) for b, s in ((2, 5), (1, 5), (2, 1), (1, 1), (4, 9))]
    serves(served.Gated().eval(), tmp_path / "b", calls[0], calls, **served.GATED_SETTINGS)


def test_buffers_that_change_views_numbers_and_defaults(tmp_path: Path) -> None:
    calls = [(torch.randn(n, 4),) for n in (3, 1, 7)]
    serves(served.Plain(), tmp_path / "b", calls[0], calls, **served.PLAIN_SETTINGS)


def test_keyword_inputs(tmp_path: Path, no_grad: None) -> None:
    model, x = served.Plain(), torch.randn(3, 4)
    for name, example in (("dict", ({"x": x, "scale": 3.0}, None)), ("both", ((x,), {"scale": 3.0}))):
        inputs, kwargs = example
        tp.bake(
            copy.deepcopy(model),
            inputs,
            tmp_path / name,
            example_kwargs=kwargs,
            **EAGER,
            **served.PLAIN_SETTINGS,
        )
        started = tp.load(tmp_path / name, copy.deepcopy(model))
        y = torch.randn(6, 4)
        assert_same(started(y, scale=3.0), copy.deepcopy(model)(y, scale=3.0))
        with pytest.raises(GuardError, match=r"scale was 3\.0"):
            started(y)


class Pair(NamedTuple):
    first: Tensor
    second: Any


@dataclasses.dataclass
class Output:
    hidden: Tensor
    pair: Pair
    note: str = "a"


class Rich(nn.Module):
    def forward(self, x: Tensor) -> list[Any]:
        y = functional.relu(x)
        return [Output(y, Pair(y, None), "b"), {1: (x, 2.5), "k": torch.float16}, y]


def test_results_keep_their_structure_and_identities(tmp_path: Path, no_grad: None) -> None:
    calls = [(torch.randn(n, 4),) for n in (3, 5)]
    started = serves(Rich(), tmp_path / "b", calls[0], calls, dynamic_arg_dims={"x": 0}, splitting_ops=[])
    x = torch.randn(4, 4)
    result = started(x)
    assert result[1][1][0] is x
    assert result[0].hidden is result[2]


def test_a_model_is_left_as_it_was_by_baking(tmp_path: Path, no_grad: None) -> None:
    model = served.LM().eval()
    keys = list(model.state_dict())
    tp.bake(model, served.example("LM", 5), tmp_path / "b", **EAGER, **served.LM_SETTINGS)
    assert list(model.state_dict()) == keys
    with pytest.raises(ConfigError, match="not compiled"):
        tp.program_of(model)


def test_weights_changed_in_place_are_seen_and_a_replaced_one_of_the_same_kind_too(
    baked: Path, lm: nn.Module, no_grad: None
) -> None:
    started, (ids,) = tp.load(baked, copy.deepcopy(lm)), served.example("LM", 6)
    other = served.LM().eval()
    started.load_state_dict(other.state_dict())
    assert_same(started(ids), other(ids))
    replaced = nn.Parameter(torch.randn(16, 16))
    for model in (started, other):
        model.get_submodule("layers.1.out").weight = replaced
    assert_same(started(ids), other(ids))


def test_calls_from_several_threads_agree(baked: Path, lm: nn.Module, no_grad: None) -> None:
    started = tp.load(baked, copy.deepcopy(lm))
    inputs = [served.example("LM", size)[0] for size in range(1, 17)]
    want = [lm(ids) for ids in inputs]
    got: dict[int, Any] = {}

    def run(index: int) -> None:
        with torch.no_grad():
            got[index] = started(inputs[index])

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert_same([got[index] for index in range(len(inputs))], want)


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda m: m(torch.zeros(3, dtype=torch.int32)), "ids was torch.int64, 1-d"),
        (lambda m: m(torch.zeros(3, 2, dtype=torch.int64)), "ids was torch.int64, 1-d"),
        (lambda m: m.train()(torch.zeros(3, dtype=torch.int64)), "training was False"),
        (lambda m: m.half()(torch.zeros(3, dtype=torch.int64)), "dtype was torch.float32, is torch.float16"),
        (lambda m: m(torch.zeros(70, dtype=torch.int64)), "ids"),
    ],
    ids=["dtype", "rank", "training", "weights", "size"],
)
def test_a_call_that_was_not_baked_is_refused_with_the_reason(
    baked: Path, lm: nn.Module, no_grad: None, call: Any, reason: str
) -> None:
    started = tp.load(baked, lm)
    with pytest.raises(GuardError) as refused:
        call(started)
    assert refused.value.what == "This call is not one that the bundle was baked for"
    assert reason in str(refused.value)


def test_a_call_that_records_gradients_is_refused(baked: Path, lm: nn.Module) -> None:
    with pytest.raises(GuardError, match="grad mode was off in the trace, got True"):
        tp.load(baked, lm)(torch.zeros(3, dtype=torch.int64))


def test_a_hook_or_submodule_added_later_is_noticed(baked: Path, lm: nn.Module, no_grad: None) -> None:
    started = tp.load(baked, lm)
    (ids,) = served.example("LM", 4)
    started(ids)
    handle = started.get_submodule("layers.0").register_forward_hook(lambda *_: None)
    with pytest.raises(GuardError, match="a submodule or a hook was replaced"):
        started(ids)
    handle.remove()
    started.layers[1] = served.Block(1)  # type: ignore[index]
    with pytest.raises(GuardError, match="a submodule or a hook was replaced"):
        started(ids)


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        return x * 2


def test_a_model_that_changes_python_objects_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError) as refused:
        tp.bake(Counting(), (torch.randn(3, 2),), tmp_path / "b", **EAGER, dynamic_arg_dims={"x": 0})
    assert str(refused.value) == (
        "A bundle cannot hold this model: a call changes Python objects besides computing tensors\n"
        "  expected: a forward that returns its results, changes tensors in place and replaces buffers at "
        "most\n"
        "  got: it changes the attribute 'count'\n"
        "  to do: keep such state in buffers, or return it; tp.compile runs this model as it is"
    )
    assert not list(tmp_path.iterdir())


def test_a_bad_call_of_bake_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"example inputs of tp\.bake are no call"):
        tp.bake(served.Plain(), torch.randn(3, 4), tmp_path / "b")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="This object cannot be baked"):
        tp.bake(torch.relu, (torch.randn(3, 4),), tmp_path / "b")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"tp\.bake cannot write down pieces of backend='inductor_memory'"):
        tp.bake(served.Plain(), (torch.randn(3, 4),), tmp_path / "b", backend="inductor_memory")
    with pytest.raises(ConfigError, match=r"tp\.load needs the weights"):
        tp.load(tmp_path / "b", None)  # type: ignore[arg-type]


def test_sizes_that_the_compiler_did_not_allow_for_run_as_python(
    rewritten: Rewrite, lm: nn.Module, no_grad: None
) -> None:
    def guard(manifest: dict[str, Any]) -> None:
        (symbol,) = manifest["sizes"]["symbols"]
        for one in manifest["serving"]:
            one |= {"guards": [f"{symbol} >= 7"], "otherwise": one["pieces"]}
        manifest["serving"][1]["otherwise"] = None

    started = tp.load(rewritten(guard), copy.deepcopy(lm))
    for size in (5, 1, 8, 9):
        (ids,) = served.example("LM", size)
        assert_same(started(ids), lm(ids), f"at {size}")

    def refuse(manifest: dict[str, Any]) -> None:
        guard(manifest)
        manifest["serving"][0]["otherwise"] = None

    with pytest.raises(GuardError, match=">= 7"):
        tp.load(rewritten(refuse), lm)(torch.zeros(5, dtype=torch.int64))
