"""Private torch names that the splitting ops need; to be merged into ``torch_private.py``."""

from __future__ import annotations

from dataclasses import dataclass

import torch

# torch._ops.OpOverload, OpOverloadPacket (2.11 to 2.13): the types of FX targets; torch.ops hands out
# their instances but no public module names the classes.
from torch._ops import OpOverload as OpOverload
from torch._ops import OpOverloadPacket as OpOverloadPacket


@dataclass(frozen=True)
class OpSchema:
    """What an op's schema says about its arguments.

    Attributes:
        text: the schema, without a name: ``"(Tensor x, Tensor(a!) out) -> ()"``.
        arguments: argument names in order.
        written: names of the tensor arguments that the op writes to.
        keyword_only_tensors: names of tensor arguments that cannot be given by position.
        returns: number of values returned.
    """

    text: str
    arguments: tuple[str, ...]
    written: tuple[str, ...]
    keyword_only_tensors: tuple[str, ...]
    returns: int


def read_schema(text: str) -> OpSchema:
    """Parse a schema without a name: ``"(Tensor x, Tensor(a!) out) -> ()"``.

    ``torch._C.parse_schema`` (2.11 to 2.13) is what ``torch.library`` reads schemas with; its public
    functions do so only while they define an op, too late to check anything first.

    Raises:
        RuntimeError: torch cannot read it.
    """
    schema = torch._C.parse_schema(f"op{text}")
    arguments = schema.arguments
    return OpSchema(
        text=text,
        arguments=tuple(argument.name for argument in arguments),
        written=tuple(a.name for a in arguments if a.alias_info is not None and a.alias_info.is_write),
        keyword_only_tensors=tuple(a.name for a in arguments if a.kwarg_only and "Tensor" in str(a.type)),
        returns=len(schema.returns),
    )
