"""The cut: keys and values are kept, and attention is causal over the valid prefix."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from torch_piecewise.demo.attention import attention
from torch_piecewise.demo.base import CacheOverflow
from torch_piecewise.splitting_ops import splitting_op_for

HEADS, KV_HEADS, HEAD_DIM, CAPACITY = 6, 2, 4, 12


def call(n: int, past: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    q, out = torch.randn(n, HEADS, HEAD_DIM), torch.empty(n, HEADS * HEAD_DIM)
    k, v = torch.randn(2, n, KV_HEADS, HEAD_DIM)
    attention(q, k, v, keys, values, torch.tensor([past]), out)
    return q, k, v, out


def caches() -> tuple[Tensor, Tensor]:
    # Rows that are not valid yet hold what would poison every result.
    keys, values = torch.full((2, CAPACITY, KV_HEADS, HEAD_DIM), float("nan"))
    return keys, values


def by_hand(q: Tensor, keys: Tensor, values: Tensor, past: int) -> Tensor:
    """Attention one head and one query at a time."""
    rows = torch.empty(q.shape)
    for query in range(q.shape[0]):
        for head in range(HEADS):
            group = head // (HEADS // KV_HEADS)
            visible = slice(0, past + query + 1)
            weights = (keys[visible, group] @ q[query, head] / HEAD_DIM**0.5).softmax(0)
            rows[query, head] = weights @ values[visible, group]
    return rows.flatten(1)


@pytest.mark.parametrize(
    ("past", "n"), [(0, 1), (0, 2), (0, 12), (1, 1), (3, 1), (1, 2), (5, 4), (11, 1), (2, 10)]
)
def test_it_equals_attention_by_hand_over_the_prefix_and_the_new_rows(past: int, n: int) -> None:
    torch.manual_seed(past * 100 + n)
    keys, values = caches()
    if past:
        call(past, 0, keys, values)
    q, _, _, out = call(n, past, keys, values)
    torch.testing.assert_close(out, by_hand(q, keys, values, past))


def test_new_keys_and_values_are_written_after_the_prefix_and_nowhere_else() -> None:
    keys, values = caches()
    _, k, v, _ = call(3, 2, torch.nan_to_num_(keys), torch.nan_to_num_(values))
    assert torch.equal(keys[2:5], k)
    assert torch.equal(values[2:5], v)
    assert keys[:2].eq(0).all()
    assert keys[5:].eq(0).all()


@pytest.mark.parametrize(("past", "n"), [(12, 1), (0, 13), (10, 3)])
def test_a_sequence_longer_than_the_cache_is_refused_before_anything_is_written(past: int, n: int) -> None:
    keys, values = caches()
    with pytest.raises(CacheOverflow, match="longer than the key and value cache") as caught:
        call(n, past, keys, values)
    assert f"at most {CAPACITY} positions" in str(caught.value)
    assert f"{past} kept and {n} new" in str(caught.value)
    assert keys.isnan().all()


def test_it_is_a_place_to_cut() -> None:
    assert splitting_op_for(torch.ops.torch_piecewise_demo.attention.default) is attention
