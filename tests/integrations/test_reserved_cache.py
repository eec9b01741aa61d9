from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, LlamaConfig
from transformers.cache_utils import DynamicLayer

from torch_piecewise.integrations.reserved_cache import ReservedLayer, reserve


def states(batch: int, length: int) -> tuple[Tensor, Tensor]:
    return torch.randn(batch, 2, length, 4), torch.randn(batch, 2, length, 4)


def assert_same(ours: DynamicLayer, theirs: DynamicLayer) -> None:
    assert ours.get_seq_length() == theirs.get_seq_length()
    assert torch.equal(ours.keys, theirs.keys)
    assert torch.equal(ours.values, theirs.values)


@pytest.mark.parametrize("capacity", [1, 4, 64])
def test_it_keeps_what_a_growing_layer_keeps_whatever_is_done_to_it(capacity: int) -> None:
    ours, theirs = ReservedLayer(capacity), DynamicLayer()

    def both(verb: str, *args: object) -> None:
        for layer in (ours, theirs):
            getattr(layer, verb)(*args)
        assert_same(ours, theirs)

    both("update", *states(2, 5))
    both("update", *states(2, 1))
    both("crop", -3)
    both("update", *states(2, 2))
    both("reorder_cache", torch.tensor([1, 0]))
    both("update", *states(2, 1))
    both("batch_repeat_interleave", 3)
    both("update", *states(6, 1))
    both("batch_select_indices", torch.tensor([0, 4]))
    both("update", *states(2, 30))


def test_a_reset_layer_starts_again_with_another_batch() -> None:
    layer = ReservedLayer(4)
    layer.update(*states(2, 3))
    layer.reset()
    keys, values = states(5, 2)
    layer.update(keys, values)
    assert torch.equal(layer.keys, keys) and torch.equal(layer.values, values)


def test_a_step_within_the_reserve_copies_nothing_that_is_kept() -> None:
    layer = ReservedLayer(8)
    layer.update(*states(1, 3))
    where = layer.keys.data_ptr()
    layer.update(*states(1, 5))
    assert layer.keys.data_ptr() == where
    layer.update(*states(1, 1))
    assert layer.keys.data_ptr() != where


def test_only_empty_growing_layers_are_exchanged() -> None:
    config = LlamaConfig(num_hidden_layers=3, hidden_size=8, num_attention_heads=2)
    cache = DynamicCache(config=config)
    cache.update(*states(1, 2), 1)
    reserve(cache, 16)
    reserve(None, 16)
    assert [type(layer) for layer in cache.layers] == [ReservedLayer, DynamicLayer, ReservedLayer]
