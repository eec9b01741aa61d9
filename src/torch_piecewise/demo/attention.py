"""The place to cut: one op that keeps keys and values and attends over them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from torch_piecewise.demo.base import CacheOverflow
from torch_piecewise.splitting_ops import splitting_op


@splitting_op("torch_piecewise_demo::attention", mutates_args=("keys", "values", "out"))
def attention(
    q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, past: Tensor, out: Tensor
) -> None:
    """Append ``k`` and ``v`` to the cache and write causal attention over its valid prefix to ``out``.

    The cache arrives as the layer's own tensors and its length as a value, not as a shape, a Python
    number or a look-up by layer: nothing here is global, no length is guarded or compiled for, and the
    pieces around the cut are the same for every layer.

    Args:
        q: ``[n, heads, head_dim]``, rotated.
        k, v: ``[n, kv_heads, head_dim]``, ``k`` rotated; ``heads`` is a multiple of ``kv_heads``.
        keys, values: ``[capacity, kv_heads, head_dim]``; rows ``past`` to ``past + n`` are written.
        past: ``[1]``, int64: the number of valid rows before this call. Kept on the CPU, where reading it
            costs less than a microsecond and waits for no device.
        out: ``[n, heads * head_dim]``.

    Raises:
        CacheOverflow: ``past + n`` is more than ``capacity``.
    """
    n = q.shape[0]
    start = int(past.item())
    end = start + n
    if end > keys.shape[0]:
        raise CacheOverflow(
            "The sequence is longer than the key and value cache",
            expected=f"at most {keys.shape[0]} positions",
            got=f"{end} ({start} kept and {n} new)",
            hint="shorten the prompt, ask for fewer new tokens, or make the model with a larger capacity",
        )
    keys[start:end] = k
    values[start:end] = v
    attended = scaled_dot_product_attention(
        q.transpose(0, 1).unsqueeze(0),
        keys[:end].transpose(0, 1).unsqueeze(0),
        values[:end].transpose(0, 1).unsqueeze(0),
        attn_mask=_mask(n, start, q.device),
        is_causal=start == 0 and n > 1,
        enable_gqa=True,
    )
    out.view(n, q.shape[1], q.shape[2]).copy_(attended[0].transpose(0, 1))


def _mask(n: int, start: int, device: torch.device) -> Tensor | None:
    """``[n, start + n]``, True where a query may look; None where ``is_causal`` or nothing says it."""
    if n == 1 or start == 0:
        return None
    return torch.ones(n, start + n, dtype=torch.bool, device=device).tril(start)
