"""The sizes of the demo's model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch_piecewise.demo.base import DemoError


@dataclass(frozen=True)
class LlamaConfig:
    """The sizes of a Llama.

    Attributes:
        hidden: width of the residual stream.
        intermediate: width of the MLP.
        norm_eps: added to the mean square in the norms.
        rope_base: longest wavelength of the rotary embedding, over 2 pi.
    """

    vocab: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    norm_eps: float
    rope_base: float

    @classmethod
    def from_transformers(cls, config: Mapping[str, object]) -> LlamaConfig:
        """From the content of a transformers ``config.json``.

        Raises:
            DemoError: the file describes something this model is not.
        """
        rope = config.get("rope_parameters")
        if config.get("model_type") != "llama" or not config.get("tie_word_embeddings"):
            raise DemoError("The model is no Llama with tied embeddings", got=str(config.get("model_type")))
        if not isinstance(rope, Mapping) or rope.get("rope_type") != "default":
            raise DemoError("The model's rotary embedding is not the plain one", got=repr(rope))

        def number(name: str) -> int:
            value = config.get(name)
            if not isinstance(value, int):
                raise DemoError(f"The model's config has no {name}", expected="an integer", got=repr(value))
            return value

        return cls(
            vocab=number("vocab_size"),
            hidden=number("hidden_size"),
            intermediate=number("intermediate_size"),
            layers=number("num_hidden_layers"),
            heads=number("num_attention_heads"),
            kv_heads=number("num_key_value_heads"),
            head_dim=number("head_dim"),
            norm_eps=float(str(config["rms_norm_eps"])),
            rope_base=float(str(rope["rope_theta"])),
        )
