"""A small Llama in plain PyTorch: one sequence, logits of its last position.

Embedding and output share their weights; keys and values are kept in the layers.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - as torch code has it

from torch_piecewise.demo.attention import attention
from torch_piecewise.demo.llama_config import LlamaConfig


class Linear(nn.Module):
    """A linear layer without a bias and without the time that random initial weights take."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)


class Attention(nn.Module):
    """Attention of one layer, with the keys and values of the one sequence the model works on."""

    keys: Tensor
    values: Tensor

    def __init__(self, config: LlamaConfig, capacity: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = config.heads, config.kv_heads, config.head_dim
        self.qkv = Linear(config.hidden, (config.heads + 2 * config.kv_heads) * config.head_dim)
        self.output = Linear(config.heads * config.head_dim, config.hidden)
        for name in ("keys", "values"):
            cache = torch.zeros(capacity, config.kv_heads, config.head_dim)
            self.register_buffer(name, cache, persistent=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, past: Tensor) -> Tensor:
        qkv = self.qkv(x).view(-1, self.heads + 2 * self.kv_heads, self.head_dim)
        turned = _rotate(qkv[:, : self.heads + self.kv_heads], cos, sin)
        q, k, v = turned[:, : self.heads], turned[:, self.heads :], qkv[:, self.heads + self.kv_heads :]
        out = x.new_empty(x.shape[0], self.heads * self.head_dim)
        attention(q, k, v, self.keys, self.values, past, out)
        return self.output(out)  # type: ignore[no-any-return]


class MLP(nn.Module):
    """The gated feed-forward part of a layer: [n, hidden] -> [n, hidden]."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.gate_up = Linear(config.hidden, 2 * config.intermediate)
        self.down = Linear(config.intermediate, config.hidden)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)  # type: ignore[no-any-return]


class Layer(nn.Module):
    """Attention and feed-forward, each behind a norm and added to its input: [n, hidden] -> [n, hidden]."""

    def __init__(self, config: LlamaConfig, capacity: int) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.hidden, config.norm_eps)
        self.attention = Attention(config, capacity)
        self.mlp_norm = nn.RMSNorm(config.hidden, config.norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, past: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x), cos, sin, past)
        return x + self.mlp(self.mlp_norm(x))  # type: ignore[no-any-return]


class Llama(nn.Module):
    """The model. Its weights are unset until :meth:`load_transformers` fills them.

    It holds the cache of one sequence: a call at positions ``p, p + 1, ...`` forgets whatever was kept
    from position ``p`` on. Sequences that are generated at the same time need a model each.

    Args:
        capacity: the most positions a sequence can have.
    """

    frequencies: Tensor

    def __init__(self, config: LlamaConfig, *, capacity: int) -> None:
        super().__init__()
        self.config, self.capacity = config, capacity
        self.embedding = nn.Parameter(torch.empty(config.vocab, config.hidden))
        self.layers = nn.ModuleList(Layer(config, capacity) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.hidden, config.norm_eps)
        exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
        self.register_buffer("frequencies", 1.0 / config.rope_base**exponents, persistent=False)
        self.eval().requires_grad_(False)

    def forward(self, input_ids: Tensor, positions: Tensor, past: Tensor) -> Tensor:
        """Logits of the token after the last one.

        Args:
            input_ids: ``[n]``, int64, the next tokens of the sequence.
            positions: ``[n]``, int64: ``past, past + 1, ...``.
            past: ``[1]``, int64, on the CPU: how many tokens came before.

        Returns:
            ``[vocab]``.
        """
        x = F.embedding(input_ids, self.embedding)
        angles = torch.outer(positions.to(self.frequencies.dtype), self.frequencies).unsqueeze(1)
        cos, sin = angles.cos(), angles.sin()
        for layer in self.layers:
            x = layer(x, cos, sin, past)
        return F.linear(self.norm(x[-1:]), self.embedding)[0]

    def load_transformers(self, weights: Mapping[str, Tensor]) -> None:
        """Copy the weights of a transformers ``LlamaForCausalLM`` (its state dict)."""
        ours = {
            "embedding": weights["model.embed_tokens.weight"].clone(),
            "norm.weight": weights["model.norm.weight"].clone(),
        }
        for index in range(self.config.layers):
            layer = f"model.layers.{index}."
            attn, mlp = layer + "self_attn.", layer + "mlp."
            for name, parts in {
                "attention_norm": (layer + "input_layernorm",),
                "attention.qkv": (attn + "q_proj", attn + "k_proj", attn + "v_proj"),
                "attention.output": (attn + "o_proj",),
                "mlp_norm": (layer + "post_attention_layernorm",),
                "mlp.gate_up": (mlp + "gate_proj", mlp + "up_proj"),
                "mlp.down": (mlp + "down_proj",),
            }.items():
                stacked = torch.cat([weights[f"{part}.weight"] for part in parts])
                ours[f"layers.{index}.{name}.weight"] = stacked
        self.load_state_dict(ours, assign=True)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of ``x [n, heads, d]``; each pair is half of d apart, ``cos`` is ``[n, 1, d / 2]``."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
