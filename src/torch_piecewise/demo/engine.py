"""Where the demo meets the library: one model compiled, and what there is to tell about it."""

from __future__ import annotations

from dataclasses import dataclass

import torch_piecewise as tp
from torch_piecewise.demo.attention import attention
from torch_piecewise.demo.model import Llama


@dataclass(frozen=True)
class Facts:
    """What the table says about a compiled model.

    Attributes:
        pieces: compiled pieces, cuts not counted.
        distinct_pieces: how many of them differ.
        compile_seconds: spent in compilers; 0 when everything came from the store.
    """

    pieces: int
    distinct_pieces: int
    compile_seconds: float


def compile_model(model: Llama) -> None:
    """Compile ``model`` in place: any prefill length, decode at size 1."""
    tp.compile(
        model,
        dynamic_arg_dims={"input_ids": {0: "n"}, "positions": {0: "n"}},
        dispatch_on="input_ids.0",
        splitting_ops=[attention.name],
        compile_sizes=[1],
    )


def facts_of(model: Llama) -> Facts:
    """What is known after the first call of a compiled model."""
    stats = tp.program_of(model).stats
    return Facts(
        pieces=stats.pieces,
        distinct_pieces=stats.distinct_pieces,
        compile_seconds=stats.compile_seconds,
    )
