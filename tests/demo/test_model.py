"""The demo's Llama computes what transformers' computes, in one traceable graph."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.passes.split_module import split_module

from torch_piecewise.demo.base import CacheOverflow, DemoError
from torch_piecewise.demo.generate import generate, step_of
from torch_piecewise.demo.llama_config import LlamaConfig
from torch_piecewise.demo.model import Llama
from torch_piecewise.demo.weights import load_llama
from torch_piecewise.splitting_ops import splitting_op_for

TOKENS = torch.tensor([7, 1, 200, 31, 5, 77, 150, 4, 4, 90, 12, 255, 63])


def feed(model: Callable[..., Tensor], *sizes: int, past: int = 0) -> Tensor:
    """Logits after feeding ``TOKENS`` from ``past`` on, in chunks of these sizes."""
    logits = torch.empty(0)
    for size in sizes:
        positions = torch.arange(past, past + size)
        logits = model(TOKENS[past : past + size], positions, torch.tensor([past]))
        past += size
    return logits


@pytest.mark.parametrize("n", [1, 2, 3, 13])
def test_logits_equal_those_of_transformers(ours: Llama, theirs: Any, n: int) -> None:
    expected = theirs(TOKENS[None, :n]).logits[0, -1]
    torch.testing.assert_close(feed(ours, n), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sizes", [(1,) * 13, (6, 7), (12, 1), (1, 12), (5, 1, 1, 6)])
def test_any_chunks_give_the_logits_of_one_prefill(ours: Llama, sizes: tuple[int, ...]) -> None:
    torch.testing.assert_close(feed(ours, *sizes), feed(ours, 13), rtol=1e-5, atol=1e-5)


def test_a_call_at_an_earlier_position_forgets_what_came_after(ours: Llama) -> None:
    expected = feed(ours, 4, 3)
    feed(ours, 13)
    torch.testing.assert_close(feed(ours, 3, past=4), expected, rtol=1e-5, atol=1e-5)


def test_the_greedy_answer_is_that_of_transformers(ours: Llama, theirs: Any) -> None:
    got = generate(step_of(ours), TOKENS.tolist(), new_tokens=20).tokens
    expected = theirs.generate(
        TOKENS[None],
        attention_mask=torch.ones(1, 13, dtype=torch.long),
        max_new_tokens=20,
        min_new_tokens=20,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    assert list(got) == expected[0, 13:].tolist()


def test_models_in_one_process_do_not_share_their_caches(folder: Path) -> None:
    one, other = load_llama(folder, capacity=16), load_llama(folder, capacity=16)
    expected = feed(one, 5, 1)
    feed(one, 5)
    feed(other, 13)
    assert torch.equal(feed(one, 1, past=5), expected)


def test_threads_with_a_model_each_get_their_own_answers(folder: Path) -> None:
    prompts = [TOKENS[start:].tolist() for start in range(4)]

    def answer(prompt: list[int]) -> tuple[int, ...]:
        return generate(step_of(load_llama(folder, capacity=64)), prompt, new_tokens=30).tokens

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(answer, prompts)) == [answer(prompt) for prompt in prompts]


def test_a_sequence_longer_than_the_capacity_is_refused(folder: Path) -> None:
    model = load_llama(folder, capacity=4)
    assert feed(model, 4).shape == (258,)
    with pytest.raises(CacheOverflow):
        feed(model, 1, past=4)


def test_caches_and_tables_are_no_part_of_the_checkpoint(ours: Llama) -> None:
    assert {name.rpartition(".")[2] for name in ours.state_dict()} == {"weight", "embedding"}


def test_it_serves_without_gradients_though_nobody_turned_them_off(ours: Llama) -> None:
    with torch.enable_grad():
        assert not feed(ours, 3).requires_grad


class Recorder:
    """A Dynamo backend that keeps the graphs and runs them as they are."""

    def __init__(self) -> None:
        self.graphs: list[torch.fx.GraphModule] = []

    def __call__(self, graph: torch.fx.GraphModule, _inputs: list[object]) -> Callable[..., Any]:
        self.graphs.append(graph)
        return graph.forward


class TestTracing:
    def test_prefill_of_any_length_at_any_position_is_one_graph(self, ours: Llama) -> None:
        recorder = Recorder()
        compiled = torch.compile(ours, backend=recorder, fullgraph=True, dynamic=True)
        for sizes in [(3, 4), (5, 2, 2), (13,), (2, 11)]:
            expected = feed(ours, *sizes)
            torch.testing.assert_close(feed(compiled, *sizes), expected)
        assert len(recorder.graphs) == 1

    def test_decode_at_any_position_is_one_graph(self, ours: Llama) -> None:
        recorder = Recorder()
        compiled = torch.compile(ours, backend=recorder, fullgraph=True, dynamic=True)
        torch.testing.assert_close(feed(compiled, *[1] * 13), feed(ours, 13), rtol=1e-5, atol=1e-5)
        assert len(recorder.graphs) == 1

    def test_each_layer_is_cut_once_and_the_cuts_take_tensors_alone(self, ours: Llama) -> None:
        recorder = Recorder()
        feed(torch.compile(ours, backend=recorder, fullgraph=True, dynamic=True), 5)
        cuts = [node for node in recorder.graphs[0].graph.nodes if splitting_op_for(node.target)]
        assert len(cuts) == 2
        for cut in cuts:
            assert all(isinstance(argument, torch.fx.Node) for argument in cut.args)
            assert not cut.kwargs

    def test_the_length_of_the_prefix_is_used_by_the_cuts_alone(self, ours: Llama) -> None:
        recorder = Recorder()
        feed(torch.compile(ours, backend=recorder, fullgraph=True, dynamic=True), 5)
        [past] = [
            node
            for node in recorder.graphs[0].graph.nodes
            if node.op == "placeholder" and "past" in node.name
        ]
        assert past.users
        assert all(splitting_op_for(user.target) for user in past.users)


def structure(graph: torch.fx.GraphModule) -> tuple[object, ...]:
    """What a graph computes, its names left out."""
    order = {node: index for index, node in enumerate(graph.graph.nodes)}
    return tuple(
        (
            node.op,
            None if node.op == "placeholder" else node.target,
            str(torch.fx.map_arg((node.args, node.kwargs), lambda used: f"#{order[used]}")),
        )
        for node in graph.graph.nodes
    )


def test_all_layers_give_the_same_piece_so_that_three_are_compiled() -> None:
    model = Llama(LlamaConfig(258, 32, 48, 6, 4, 2, 8, 1e-6, 1e4), capacity=16)
    recorder = Recorder()
    feed(torch.compile(model, backend=recorder, fullgraph=True, dynamic=True), 5)
    [graph] = recorder.graphs
    part = 0

    def part_of(node: torch.fx.Node) -> int:
        nonlocal part
        cut = splitting_op_for(node.target) is not None
        part += cut
        mine = part
        part += cut
        return mine

    split = split_module(graph, graph, part_of, keep_original_order=True)
    pieces = [piece for piece in split.children() if isinstance(piece, torch.fx.GraphModule)]
    cuts = [piece for piece in pieces if any(splitting_op_for(node.target) for node in piece.graph.nodes)]
    assert len(cuts) == 6
    assert len({structure(piece) for piece in cuts}) == 1
    assert len(pieces) - len(cuts) == 7
    assert len({structure(piece) for piece in pieces if piece not in cuts}) == 3


class TestConfig:
    def config(self, folder: Path, **changes: object) -> dict[str, object]:
        return {**json.loads((folder / "config.json").read_text("utf-8")), **changes}

    def test_the_sizes_are_read_from_a_transformers_config(self, folder: Path) -> None:
        config = LlamaConfig.from_transformers(self.config(folder))
        assert (config.layers, config.heads, config.kv_heads, config.hidden) == (2, 4, 2, 32)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"model_type": "gpt2"}, "no Llama"),
            ({"tie_word_embeddings": False}, "tied"),
            ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1.0}}, "rotary"),
            ({"hidden_size": None}, "hidden_size"),
        ],
    )
    def test_another_kind_of_model_is_refused(
        self, folder: Path, changes: dict[str, object], message: str
    ) -> None:
        with pytest.raises(DemoError, match=message):
            LlamaConfig.from_transformers(self.config(folder, **changes))
