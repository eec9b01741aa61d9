"""A trace that copies alike blocks says the same as one that traces each of them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.side_effects import SideEffects
from torch._dynamo.variables.builder import VariableBuilder
from torch._dynamo.variables.nn_module import UnspecializedNNModuleVariable

import torch_piecewise as tp
from tests.blocks import models as m
from tests.blocks.same import both, trace
from torch_piecewise.errors import GraphBreakError
from torch_piecewise.events import Event, GraphCaptured
from torch_piecewise.torch_private import block_copies, blocks

ALL = m.DEPTH - 2
"""Blocks that are copied where all are alike: the first is traced, the second confirms it."""

STACKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "plain": (lambda: m.Stack(m.Plain), ALL),
    "buffers": (lambda: m.Stack(m.Buffered), ALL),
    "a buffer changed in place": (lambda: m.Stack(m.ChangesItsBuffer), ALL),
    "one buffer of another size": (lambda: m.Stack(m.FourthHasAnotherBuffer), ALL - 1),
    "one without bias": (lambda: m.Stack(m.SomeHaveABias), ALL - 1),
    "dims that change on the way": (m.UnevenWidths, 0),
    "an index in the arithmetic": (lambda: m.Stack(m.ReadsItsIndex), 0),
    "an index that decides": (lambda: m.Stack(m.BranchesOnItsIndex), 0),
    "an index that decides at one place": (lambda: m.Stack(m.ThirdIsOther), 0),
    "a switch that only the last has on": (m.with_last, ALL - 1),
    "a helper object each": (lambda: m.Stack(m.HasAHelper), ALL),
    "helper objects that differ": (lambda: m.Stack(m.HelpersDiffer), 1),
    "functions that differ": (lambda: m.Stack(m.HasAFunction), 1),
    "a parent that is asked for the last block": (m.with_parents, 0),
    "a global": (lambda: m.Stack(m.ReadsAGlobal), ALL),
    "a global that is bound anew": (m.MovesAGlobal, 2),
    "a new list on an object outside, added to": (lambda: m.FillsAHolder(m.AddsToAHolder), 0),
    "a new list on an object outside, read": (lambda: m.FillsAHolder(m.ReadsAHolder), 0),
    "a counter": (lambda: m.Stack(m.Counts), 0),
    "an attribute that keeps a result": (lambda: m.Stack(m.Kept), 0),
    "a counter outside": (lambda: m.CountsOutside(m.Plain), 0),
    "a list outside": (lambda: m.Collects(m.Plain), ALL),
    "a list given in and read": (lambda: m.WithList(m.ReadsAList), ALL - 1),
    "a list given in and changed": (lambda: m.WithList(m.TakesAList), 0),
    "dropout": (lambda: m.Stack(m.Dropped), ALL),
    "dropout in eval mode": (lambda: m.Stack(m.Dropped).eval(), ALL),
    "one block in training mode": (m.one_training, ALL - 1),
    "random numbers": (lambda: m.Stack(m.Random), ALL),
    "hooks on all": (m.hooked, 0),
    "a hook on one": (m.one_hooked, ALL - 1),
    "one forward replaced by hand": (m.patched_forward, ALL - 1),
    "a tuple": (lambda: m.Stack(m.ReturnsATuple, m.first_of), ALL),
    "a dict with a list": (lambda: m.Stack(m.ReturnsADict, m.value_of), ALL),
    "two views of one memory": (lambda: m.Stack(m.ReturnsAView, m.viewed), ALL),
    "its own weight": (lambda: m.Stack(m.ReturnsItsWeight, m.first_of), ALL),
    "a dataclass": (lambda: m.Stack(m.ReturnsADataclass, m.dataclassed), 0),
    "its input": (lambda: m.Stack(m.ReturnsItsInput), ALL),
    "an input changed in place": (lambda: m.Stack(m.ChangesItsInput, m.cloned), ALL),
    "an input's shape changed in place": (lambda: m.Stack(m.ChangesItsInputsShape), 0),
    "keywords": (lambda: m.Stack(m.TakesKeywords, m.keyworded), ALL),
    "a position": (lambda: m.Stack(m.TakesItsPosition, m.positioned), 0),
    "each block called twice": (lambda: m.Stack(m.Plain, m.twice), 2 * m.DEPTH - 3),
    "checkpoints": (lambda: m.Stack(m.Plain, m.checkpointed), 0),
    "blocks in blocks": (lambda: m.Stack(m.Nested), 7),
    "experts": (lambda: m.Stack(m.Gated), 7),
    "experts of other numbers": (lambda: m.Stack(m.UnevenGated), 13),
    "two kinds in turn": (m.Interleaved, 4),
    "calls on many lines": (m.CalledFromManyLines, 3),
    "one weight for all": (m.Tied, 0),
    "a weight that is also elsewhere": (m.TiedToTheFirst, ALL - 1),
    "a submodule for all": (m.Shared, 8),
    "sizes": (lambda: m.Stack(m.Sized), ALL),
    "halves": (lambda: m.Stack(m.Halves), ALL),
    "a choice by data": (lambda: m.Stack(m.Picks), ALL),
    "a size by data": (lambda: m.Stack(m.CountsPositives), 0),
    "grad mode inside": (lambda: m.Stack(m.WithoutGrad), ALL),
    "autocast inside": (lambda: m.Stack(m.Autocast), 0),
    "a label": (lambda: m.Stack(m.Labelled), ALL),
    "a label that is looked into": (lambda: m.Stack(m.LabelIsReadToo), 0),
    "a label that is composed": (lambda: m.Stack(m.LabelIsComposed), 0),
    "a label through a function": (lambda: m.Stack(m.LabelGoesThroughAFunction), ALL),
    "a label of one letter": (lambda: m.Stack(m.OneLetterLabel), 0),
    "a label of a block inside": (lambda: m.Stack(m.LabelOfTheAttentionInside), ALL),
}

WITH_GRADIENTS = (
    "plain",
    "two views of one memory",
    "a dict with a list",
    "an input changed in place",
    "blocks in blocks",
    "its own weight",
    "calls on many lines",
    "dropout",
)


@pytest.mark.parametrize("name", STACKS)
def test_a_trace_with_copies_equals_a_plain_one(name: str, no_grad: None) -> None:
    make, copies = STACKS[name]
    assert both(make(), torch.rand(6, m.WIDTH)).blocks_shared == copies


@pytest.mark.parametrize("name", WITH_GRADIENTS)
def test_a_trace_for_gradients_equals_a_plain_one(name: str) -> None:
    make, copies = STACKS[name]
    shared = both(make(), torch.rand(6, m.WIDTH, requires_grad=True)).blocks_shared
    # The blocks of one model get an input without a gradient first, which is another kind of input.
    assert shared in (copies, copies - 1, copies - 2)
    assert shared > 0


# Writing to ``cache[:n]``, torch 2.11 asks about sizes of its own unless it may assume what a size is not.


def test_caches_given_in_a_list_are_told_apart(no_grad: None) -> None:
    caches = [torch.rand(32, m.WIDTH) for _ in range(m.DEPTH)]
    shared = both(m.WithCaches(m.WritesItsCache), torch.rand(6, m.WIDTH), caches, oblivious=False)
    assert shared.blocks_shared == ALL
    assert [source for source in shared.sources if "caches" in source] == [
        f"L['caches'][{index}]" for index in range(m.DEPTH)
    ]


def test_a_cache_object_with_a_tensor_per_block_shares_what_lies_in_the_blocks(no_grad: None) -> None:
    shared = both(m.WithCache(m.UsesACache), torch.rand(6, m.WIDTH), m.Cache(), oblivious=False)
    assert shared.blocks_shared == ALL  # the parts behind the cache
    assert "UsesACache" in shared.blocks_apart


def test_a_cache_object_that_grows_is_traced_plainly(no_grad: None) -> None:
    assert both(m.WithCache(m.UsesACache), torch.rand(6, m.WIDTH), m.GrowingCache()).blocks_shared == 0


def test_a_number_read_from_a_cache_object_is_shared(no_grad: None) -> None:
    assert both(m.WithCache(m.ReadsACachesLength), torch.rand(6, m.WIDTH), m.Cache()).blocks_shared > 0


@pytest.mark.slow
def test_a_transformers_llama_is_copied_from_its_third_layer_on(no_grad: None) -> None:
    """The first layer alone reads what all share (its class, its config)."""
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    ids = torch.randint(0, 64, (2, 7))
    assert both(lambda ids: model(input_ids=ids, use_cache=False).logits, ids).blocks_shared >= 3
    assert both(model.model, ids, use_cache=False).blocks_shared >= 3


def test_why_a_block_was_traced_by_itself_is_told(no_grad: None, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "torch_piecewise"):
        raw = trace(m.Stack(m.Counts), torch.rand(6, m.WIDTH), share=True)
    reason = "it changes L['self']._modules['layers']._modules['2']"
    assert raw.blocks_apart == {"Counts": reason}
    assert f"a Counts is traced by itself: {reason}" in caplog.messages


def test_the_event_of_a_trace_tells_how_many_blocks_were_shared(no_grad: None) -> None:
    seen: list[Event] = []
    model = tp.compile(m.Stack(m.Plain).eval(), backend="eager", disable_cache=True)
    handle = tp.program_of(model)
    handle.bus.add(seen.append)
    model(torch.rand(6, m.WIDTH))
    (captured,) = [event for event in seen if isinstance(event, GraphCaptured)]
    assert captured.blocks_shared == ALL
    assert captured.blocks_apart == {}


@pytest.mark.parametrize("block", [m.Labelled, m.Sized, m.Nested, m.Gated, m.ReadsItsIndex, m.ThirdIsOther])
def test_a_compiled_model_with_copies_computes_what_eager_does(block: Any, no_grad: None) -> None:
    model = m.Stack(block).eval()
    inputs = [torch.rand(size, m.WIDTH) for size in (6, 3, 1)]
    expected = [model(x) for x in inputs]
    tp.compile(model, backend="eager", disable_cache=True, splitting_ops=["block_tests::attention"])
    for x, wanted in zip(inputs, expected, strict=True):
        assert torch.equal(model(x), wanted)


def test_calls_of_a_module_class_are_cut_in_copies_too(no_grad: None) -> None:
    model = tp.compile(
        m.Stack(m.Nested).eval(), backend="eager", disable_cache=True, splitting_ops=[nn.Linear]
    )
    x = torch.rand(6, m.WIDTH)
    wanted = m.Stack.forward(model, x)
    assert torch.equal(model(x), wanted)
    assert tp.program_of(model).stats.cuts == 1 + 3 * m.DEPTH  # a last and the next first stand side by side


def test_a_hook_added_after_the_trace_is_noticed_on_a_copied_block(no_grad: None) -> None:
    model = tp.compile(m.Stack(m.Plain).eval(), backend="eager", disable_cache=True)
    x = torch.rand(6, m.WIDTH)
    before = model(x)
    model.layers[-1].register_forward_hook(lambda module, args, output: output + 1)
    assert torch.equal(model(x), before + 1)


def test_a_replaced_parameter_of_a_copied_block_is_used(no_grad: None) -> None:
    model = tp.compile(m.Stack(m.Plain).eval(), backend="eager", disable_cache=True)
    x = torch.rand(6, m.WIDTH)
    before = model(x)
    model.layers[-1].linear.weight = nn.Parameter(torch.rand(m.WIDTH, m.WIDTH))
    after = model(x)
    assert not torch.equal(after, before)
    assert torch.equal(after, m.Stack.forward(model, x))


def test_gradients_through_copies_match_eagers() -> None:
    model = m.Stack(m.Nested)
    x = torch.rand(6, m.WIDTH, requires_grad=True)
    model(x).sum().backward()
    wanted = [parameter.grad for parameter in model.parameters()]
    model.zero_grad()
    tp.compile(model, backend="eager", disable_cache=True)
    model(x).sum().backward()
    for parameter, gradient in zip(model.parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_a_copy_that_fails_midway_leads_to_a_plain_trace(
    no_grad: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: object) -> None:
        raise block_copies.CopyFailed("on purpose")

    monkeypatch.setattr(block_copies.Copy, "_result", fail)
    assert both(m.Stack(m.Plain), torch.rand(6, m.WIDTH)).blocks_shared == 0


class Breaks(m.Base):
    def forward(self, x: Tensor) -> Tensor:
        torch._dynamo.graph_break()
        return self.linear(x)


def test_a_model_that_breaks_the_graph_is_refused_as_ever(no_grad: None) -> None:
    with pytest.raises(GraphBreakError, match="breaks the graph"):
        tp.compile(m.Stack(Breaks), backend="eager", disable_cache=True)(torch.rand(6, m.WIDTH))


def _doors() -> tuple[object, ...]:
    return (
        UnspecializedNNModuleVariable.call_function,
        SideEffects.check_allowed_side_effect,
        VariableBuilder.__call__,
    )


def test_dynamo_is_as_before_after_a_trace_and_after_an_error() -> None:
    before = _doors()
    with blocks.sharing(blocks.Blocks()):
        assert all(inside is not outside for inside, outside in zip(_doors(), before, strict=True))
    assert _doors() == before
    with pytest.raises(ZeroDivisionError), blocks.sharing(blocks.Blocks()):
        raise ZeroDivisionError
    assert _doors() == before


def test_traces_in_other_threads_are_left_alone(no_grad: None) -> None:
    """A trace of torch's own on another thread, while the door is open here, sees nothing of it."""
    found: list[Tensor] = []
    model, x = m.Stack(m.Plain), torch.rand(6, m.WIDTH)
    counted = blocks.Blocks(list(model.modules()))

    def run() -> None:
        with torch.no_grad():
            found.append(torch.compile(model, backend="eager", fullgraph=True)(x))

    with blocks.sharing(counted):
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    assert torch.equal(found[0], model(x))
    assert not counted.active


def _fakes(share: bool, model: torch.nn.Module) -> dict[str, Tensor]:
    raw = trace(model, torch.rand(6, m.WIDTH), share=share)
    named = zip(raw.sources, raw.fakes, strict=True)
    return {name: fake for name, fake in named if isinstance(fake, torch.nn.Parameter)}


@pytest.mark.parametrize("odd", ["tied", "grad", "view", "marked"])
def test_fakes_of_parameters_are_what_torch_makes_of_them(no_grad: None, odd: str) -> None:
    model = m.Stack(m.Plain)
    special = model.layers[3].linear
    if odd == "tied":
        special.weight.data = model.layers[2].linear.weight.data
    elif odd == "grad":
        special.weight.grad = torch.rand_like(special.weight)
    elif odd == "view":
        special.weight = torch.nn.Parameter(torch.rand(2, m.WIDTH, m.WIDTH)[1])
    else:
        special.weight.own_mark = 7
    mine, theirs = _fakes(True, model), _fakes(False, model)
    assert mine.keys() == theirs.keys()
    for name, fake in mine.items():
        other = theirs[name]
        assert type(fake) is type(other)
        for measure in (Tensor.size, Tensor.stride, Tensor.storage_offset):
            assert measure(fake) == measure(other)
        for fact in ("dtype", "device", "requires_grad", "is_leaf"):
            assert getattr(fake, fact) == getattr(other, fact)
        assert fake.untyped_storage().nbytes() == other.untyped_storage().nbytes()
        assert (fake.grad is None) == (other.grad is None)
    for fakes in (mine, theirs):
        shared = [fake.untyped_storage()._cdata for fake in fakes.values()]
        assert len(shared) - len(set(shared)) == (odd == "tied")
