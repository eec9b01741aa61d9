"""Which sizes change, and what each call is checked against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch_piecewise.config.fields_setting import CAPTURE_SIZES, setting
from torch_piecewise.config.kinds import Bool, Choice, Int, Items, OrNone, OrWord, in_order
from torch_piecewise.config.own_kinds import ArgumentDim, Dims

_SIZE_BITS = 63
"""Of the largest size that a dim of a tensor can have."""


@dataclass(frozen=True, kw_only=True, repr=False)
class SizeFields:
    """Which sizes change, and what is assumed about them."""

    dynamic_arg_dims: Mapping[str, int | Sequence[int] | Mapping[int, str | None]] | None = field(
        default=None,
        metadata=setting(
            OrNone(Dims(named=True)),
            "Dims whose size changes from call to call: argument name -> dim, list of dims, or "
            "{dim: symbol name}; dims with one symbol name always have equal sizes. A negative dim counts "
            "from the last. None: dim 0 of each argument annotated as a tensor.",
            "capture",
        ),
    )
    mark_unbacked_dims: Mapping[str, int | Sequence[int] | Mapping[int, None]] | None = field(
        default=None,
        metadata=setting(
            OrNone(Dims(named=False)),
            "Dims traced as sizes about which nothing may be assumed, whatever dynamic_shapes says: "
            "argument name -> dim or list of dims. They change from call to call without being named in "
            "dynamic_arg_dims too. None: no such dims.",
            "capture",
        ),
    )
    dynamic_shapes: str = field(
        default="backed_size_oblivious",
        metadata=setting(
            Choice(("backed", "unbacked", "backed_size_oblivious")),
            "What the trace may assume about dynamic sizes. 'backed': that they are not 0 or 1 and whatever "
            "else the example's size decides; sizes 0 and 1 get traces of their own. 'unbacked': nothing; "
            "code that asks fails to trace. "
            "'backed_size_oblivious': nothing about 0 and 1 unless the model's own code asks, and then a "
            "real guard is kept, so that size 1 is served by the same program without a wrong answer.",
            "capture",
        ),
    )
    evaluate_guards: bool = field(
        default=False,
        metadata=setting(
            Bool(),
            "Make a call an error whose size the model's own code treats apart, whatever on_guard_failure "
            "says: the error shows the line that asked. Finds code that fixes a dynamic size unnoticed. What "
            "torch itself assumes of 0 and 1 is not counted against the model.",
            "capture",
        ),
    )
    assume_32_bit_indexing: bool = field(
        default=False,
        metadata=setting(
            Bool(),
            "Let Inductor index every tensor with 32 bits. A promise that no tensor of the graph has 2**31 "
            "elements or more: a size for which one would have is an error, unless guards='none'.",
            "compilers",
        ),
    )
    dispatch_on: str | None = field(
        default=None,
        metadata=setting(
            OrNone(ArgumentDim()),
            "The 'argument.dim' that compile_ranges_endpoints and compile_sizes are about; other symbols "
            "stay symbolic. A negative dim counts from the last. None: the first dynamic dim.",
            "capture",
        ),
    )
    compile_ranges_endpoints: Sequence[int] = field(
        default=(),
        metadata=setting(
            Items(Int(1, _SIZE_BITS), "[64, 512]", in_order),
            "Last sizes of the ranges that are compiled apart: e0, e1 give [1, e0], [e0+1, e1], and an open "
            "last range. Sorted, each once. Empty: one range for every size.",
            "manager",
        ),
    )
    compile_sizes: Sequence[int | str] = field(
        default=(),
        metadata=setting(
            Items(OrWord(Int(0, _SIZE_BITS), CAPTURE_SIZES), f"[1, 8, '{CAPTURE_SIZES}']", in_order),
            "Sizes that get code of their own, which beats the range they lie in; the word "
            f"'{CAPTURE_SIZES}' stands for those. Sorted, each once. Empty: ranges only.",
            "manager",
        ),
    )


@dataclass(frozen=True, kw_only=True, repr=False)
class GuardFields:
    """What a call is checked against."""

    guards: str = field(
        default="inputs",
        metadata=setting(
            Choice(("inputs", "full", "none")),
            "What each call is checked against. 'inputs': rank, dtype, device, static dims, Python scalars "
            "and None-ness of the call's arguments, training flag, grad mode, autocast, replaced parameters, "
            "buffers and submodules; another attribute changed by hand is not noticed. 'full': these, and "
            "all of Dynamo's own guards; they compare objects of this process and cannot be kept, so that "
            "each process traces and only compiled pieces come from the store. 'none': nothing, and what "
            "is asked of sizes goes too: neither sizes that have to be equal, nor a size 0 or 1 that the "
            "model treats apart, nor assume_32_bit_indexing is looked at. The caller promises that every "
            "call is like the first but for its dynamic sizes, and that those take the same way through the "
            "code; one that is not gets a wrong answer.",
            "capture",
        ),
    )
    on_guard_failure: str = field(
        default="recompile",
        metadata=setting(
            Choice(("error", "recompile")),
            "What a call that the program was not made for gets: an error, or a new trace (16 at most: then "
            "such calls run uncompiled, and the log says so).",
            "capture",
            keyed=False,
        ),
    )
