"""A Llama that works on many sequences at once; its paged cache is read and written at the cut.

All tokens of a step stand in one row, whatever sequences they are of: the pieces between the cuts see
``[n, ...]`` and know nothing of sequences. Who is who stands in a :class:`Batch` of tensors of fixed size,
which only the cut reads.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - as torch code has it

import torch_piecewise as tp
from torch_piecewise.demo.llama_config import LlamaConfig
from torch_piecewise.demo.model import MLP, Linear


class Batch(NamedTuple):
    """Which tokens of a step belong to which sequence; int64, on the CPU.

    ``counts`` is ``[sequences]``: new tokens of each, 0 where the place is free. ``lengths`` is
    ``[sequences]``: tokens of each, new ones included. ``tables`` is ``[sequences, pages]``: the pages of
    each, in order.
    """

    counts: Tensor
    lengths: Tensor
    tables: Tensor


@tp.splitting_op("mini_engine::paged_attention", mutates_args=("keys", "values", "out"))
def paged_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keys: Tensor,
    values: Tensor,
    counts: Tensor,
    lengths: Tensor,
    tables: Tensor,
    out: Tensor,
) -> None:
    """Keep ``k`` and ``v`` (``[n, kv_heads, d]``) in the pages of their sequences, and attend over these.

    ``keys`` and ``values`` are ``[pages, page, kv_heads, d]``; ``out`` is ``[n, heads, d]``. On a GPU this is
    where the kernel of your choice goes.
    """
    page = keys.shape[1]
    start = 0
    for place, (count, length) in enumerate(zip(counts.tolist(), lengths.tolist(), strict=True)):
        if count == 0:
            continue
        new = slice(start, start + count)
        start += count
        table = tables[place, : -(-length // page)]
        positions = torch.arange(length - count, length)
        where = (table[positions // page], positions % page)
        keys[where], values[where] = k[new], v[new]
        context = (cache[table].flatten(0, 1)[:length].transpose(0, 1)[None] for cache in (keys, values))
        queries = q[new].transpose(0, 1)[None]
        whole = count == length  # no token came before: torch's own causal mask is the right one
        mask = None if whole or count == 1 else torch.ones(count, length).bool().tril(length - count)
        attended = F.scaled_dot_product_attention(
            queries, *context, attn_mask=mask, is_causal=whole and count > 1, enable_gqa=True
        )
        out[new] = attended[0].transpose(0, 1)


class Attention(nn.Module):
    def __init__(self, config: LlamaConfig, pages: int, page: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = config.heads, config.kv_heads, config.head_dim
        self.qkv = Linear(config.hidden, (config.heads + 2 * config.kv_heads) * config.head_dim)
        self.output = Linear(config.heads * config.head_dim, config.hidden)
        for name in ("keys", "values"):
            cache = torch.zeros(pages, page, config.kv_heads, config.head_dim)
            self.register_buffer(name, cache, persistent=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, batch: Batch) -> Tensor:
        qkv = self.qkv(x).view(-1, self.heads + 2 * self.kv_heads, self.head_dim)
        first, second = qkv[:, : self.heads + self.kv_heads].chunk(2, dim=-1)
        turned = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
        q, k, v = turned[:, : self.heads], turned[:, self.heads :], qkv[:, self.heads + self.kv_heads :]
        out = torch.empty_like(q)
        paged_attention(q, k, v, self.keys, self.values, *batch, out)
        return self.output(out.flatten(1))


class Layer(nn.Module):
    def __init__(self, config: LlamaConfig, pages: int, page: int) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.hidden, config.norm_eps)
        self.attention = Attention(config, pages, page)
        self.mlp_norm = nn.RMSNorm(config.hidden, config.norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, batch: Batch) -> Tensor:
        x = x + self.attention(self.attention_norm(x), cos, sin, batch)
        return x + self.mlp(self.mlp_norm(x))


class PagedLlama(nn.Module):
    """Its parameters have the names of the demo's Llama, whose weights it takes."""

    def __init__(self, config: LlamaConfig, *, pages: int, page: int) -> None:
        super().__init__()
        self.config, self.pages, self.page = config, pages, page
        self.embedding = nn.Parameter(torch.empty(config.vocab, config.hidden))
        self.layers = nn.ModuleList(Layer(config, pages, page) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.hidden, config.norm_eps)
        exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
        self.register_buffer("frequencies", 1.0 / config.rope_base**exponents, persistent=False)
        self.eval().requires_grad_(False)

    def forward(self, input_ids: Tensor, positions: Tensor, last: Tensor, batch: Batch) -> Tensor:
        """Logits ``[sequences, vocab]`` after the tokens at ``last``; ids and positions are ``[n]``."""
        x = F.embedding(input_ids, self.embedding)
        angles = torch.outer(positions.to(self.frequencies.dtype), self.frequencies).unsqueeze(1)
        cos, sin = angles.cos(), angles.sin()
        for layer in self.layers:
            x = layer(x, cos, sin, batch)
        return F.linear(self.norm(x[last]), self.embedding)


def compile_model(model: PagedLlama, **fields: object) -> PagedLlama:
    """In place: code for few tokens (decoding) and for many (prompts among them)."""
    return tp.compile(
        model,
        dynamic_arg_dims={"input_ids": {0: "n"}, "positions": {0: "n"}, "last": {0: "sequences"}},
        dispatch_on="input_ids.0",
        splitting_ops=[paged_attention.name],
        **fields,
    )
