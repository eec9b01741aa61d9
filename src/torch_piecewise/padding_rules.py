"""The operations that are known to treat tokens one by one, and what of them has to be looked at.

To add an operation, give its name (:func:`~torch_piecewise.padding_steps.op_name`) a rule in :data:`RULES`:

* ``POINTWISE``: element by element, operands broadcast;
* ``SHAPED``: moves no token past another, whatever its arguments (``unsqueeze``, ``to``);
* ``along(position, default)``: works along the dims that stand at that place among its arguments, and on
  each of the other dims by itself. ``default``: the dim it takes where none is given; None: all of them;
* ``Rule(check)``: ``check`` gets a :class:`~torch_piecewise.padding_steps.Step` and says what is wrong.

Beyond that every result is looked at: exactly one of its dims has to carry the tokens. ``sizes=True``: the
size may stand among the arguments, and the check sees to where. ``in_place=True``: ``name_`` is covered too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch_piecewise.padding_attention import attention
from torch_piecewise.padding_indexing import getitem, setitem, sliced
from torch_piecewise.padding_steps import Place, Step, op_name, size_text

MIXES = "mixes tokens"
SIZE = "computes with the size"
ATTENTION = "scaled_dot_product_attention"
UNKNOWN = "is not known to treat tokens one by one"


@dataclass(frozen=True)
class Rule:
    """What is known of an operation.

    Attributes:
        check: what is wrong with a step of it; empty where nothing is.
        sizes: whether the size may stand among its arguments.
        in_place: whether the rule holds for the operation that writes its result to its first operand.
    """

    check: Callable[[Step], str]
    sizes: bool = False
    in_place: bool = False


def _pointwise(step: Step) -> str:
    results = {place.from_right for place in step.result_places() if place is not None}
    meets = {place.from_right for place in step.places()} | results
    return "" if len(meets) <= 1 else MIXES


def _shaped(step: Step) -> str:
    texts = {place.text for place in (*step.places(), *step.result_places()) if place is not None}
    return "" if len(texts) <= 1 else MIXES


def along(position: int, default: int | None) -> Rule:
    """Works along the dims that its argument at ``position`` names, or else along ``default``."""

    def check(step: Step) -> str:
        places = set(step.places())
        if len(places) != 1 or _shaped(step):
            return MIXES
        (place,) = places
        dims = dims_of(step.given(position, "dim", "dims", "axis", default=default), place.rank)
        return MIXES if dims is None or place.dim in dims else ""

    return Rule(check)


def dims_of(given: Any, rank: int) -> set[int] | None:
    """The dims that are named; None where that is all of them, or nobody can tell."""
    listed = given if isinstance(given, tuple | list) else (given,)
    if not listed or any(isinstance(dim, bool) or not isinstance(dim, int) for dim in listed):
        return None
    return {dim % rank for dim in listed}


def _trailing(count: Callable[[Step], int]) -> Rule:
    """Works along the last dims, ``count`` of them."""

    def check(step: Step) -> str:
        place = step.place(step.first)
        if place is None or len(step.places()) != 1:
            return MIXES
        return MIXES if place.dim >= place.rank - count(step) else ""

    return Rule(check)


def _varargs(step: Step) -> str:
    """``flip``: the dims may be given one by one."""
    given = step.given(1, "dims")
    listed = given if isinstance(given, tuple | list) else step.node.args[1:] or (given,)
    places = step.places()
    dims = dims_of(listed, places[0].rank) if places else None
    return MIXES if dims is None or places[0].dim in dims else ""


def _either(step: Step) -> str:
    """``max`` and ``min``: of two tensors, or along a dim."""
    other = step.given(1, "other")
    return _pointwise(step) if step.value(other) is not None else along(1, None).check(step)


def _reshape(step: Step) -> str:
    """Row-major order is kept, so tokens stay together where the same rows stand before them."""
    if step.first not in step.tokens.nodes:
        return SIZE
    value, place, (result,) = step.value(step.first), step.place(step.first), step.results
    new = step.tokens.place(result)
    if value is None or place is None or new is None:
        return ""  # the result is refused for what it is
    before, after = value.shape[: place.dim], result.shape[: new.dim]
    return "" if _product(before) == _product(after) else MIXES


def _product(sizes: Any) -> tuple[int, list[str]]:
    number, names = 1, []
    for size in sizes:
        if isinstance(size, int):
            number *= size
        else:
            names.append(size_text(size))
    return number, sorted(names)


def _repeat(step: Step) -> str:
    if step.place(step.first) is None:
        return ""  # rows of a constant, over and over: which they are does not follow the size
    return _pointwise(step)


def _repeat_interleave(step: Step) -> str:
    place, times, dim = step.place(step.first), step.given(1, "repeats"), step.given(2, "dim")
    return "" if place is not None and isinstance(times, int) and isinstance(dim, int) else MIXES


def _filled(position: int) -> Rule:
    """Makes a tensor of a size, of one number that stands at ``position``."""

    def check(step: Step) -> str:
        return SIZE if step.is_size(step.given(position, "fill_value", "value")) else ""

    return Rule(check, sizes=True)


def _new(step: Step) -> str:
    return ""


def _arange(step: Step) -> str:
    args = step.node.args
    start = step.node.kwargs.get("start", args[0] if len(args) > 1 else 0)
    return SIZE if step.is_size(start) or step.is_size(step.given(2, "step")) else ""


def _matmul(step: Step) -> str:
    at = 1 if op_name(step.node) in ("addmm", "baddbmm") else 0
    left, right = step.given(at, "input", "mat1", "batch1"), step.given(at + 1, "other", "mat2", "batch2")
    one, two = step.place(left), step.place(right)
    if one is not None and one.dim == one.rank - 1:
        return MIXES
    if two is not None and two.dim == max(two.rank - 2, 0):
        return MIXES
    if one is not None and two is not None and (one.from_right != two.from_right or one.from_right[0] <= 2):
        return MIXES
    bias = step.place(step.first) if at else None
    results = [place.from_right for place in step.result_places() if place is not None]
    return MIXES if bias is not None and [bias.from_right] != results else ""


def _linear(step: Step) -> str:
    place = step.place(step.first)
    return MIXES if place is None or place.dim == place.rank - 1 or len(step.places()) > 1 else ""


def _einsum(step: Step) -> str:
    given = step.node.args
    if not given or not isinstance(given[0], str) or "." in given[0] or "->" not in given[0]:
        return UNKNOWN
    operands = given[1] if len(given) == 2 and isinstance(given[1], tuple | list) else given[1:]
    read, _, written = given[0].replace(" ", "").partition("->")
    places = [step.place(operand) for operand in operands]
    letters = {text[place.dim] for text, place in zip(read.split(","), places, strict=True) if place}
    return "" if len(letters) == 1 and letters <= set(written) else MIXES


def _embedding(step: Step) -> str:
    operands = [operand for operand in step.node.all_input_nodes if step.place(operand) is not None]
    values = [step.value(operand) for operand in operands]
    if len(values) != 1 or values[0] is None or values[0].is_floating_point():
        return MIXES
    norm = step.given(3, "max_norm")
    return UNKNOWN if norm is not None and not isinstance(norm, bool | int) else ""


def _index_select(step: Step) -> str:
    if step.place(step.first) is None:
        return ""  # rows of a table, by tokens
    return along(1, None).check(step)


def _stack(step: Step) -> str:
    return "" if len(set(step.places())) == 1 and not _shaped(step) else MIXES


def _samples(step: Step) -> str:
    """Each sample (the first dim) by itself."""
    place = step.place(step.first)
    return MIXES if place is None or place.dim != 0 or len(step.places()) != 1 else ""


def _instance_norm(step: Step) -> str:
    keeps = step.given(1, "running_mean") is not None
    return MIXES if keeps else _samples(step)


def _batch_norm(step: Step) -> str:
    place, training = step.place(step.first), step.given(5, "training", default=False)
    return MIXES if training is not False or place is None or len(step.places()) != 1 else ""


def _convolution(step: Step) -> str:
    value, weight = step.value(step.first), step.value(step.given(1, "weight"))
    batched = value is not None and weight is not None and value.dim() == weight.dim()
    return _samples(step) if batched else MIXES


def _dropout(step: Step) -> str:
    training = step.given(2, "training", "train", default=True)
    return "" if training is False or step.given(1, "p") == 0 else "draws random numbers"


def _attribute(step: Step) -> str:
    return "" if step.given(1) in ("T", "mT", "real", "imag", "data") else UNKNOWN


def _item_or_index(step: Step) -> str:
    value = step.node.args[0]
    is_tensor = step.value(value) is not None
    return getitem(step) if is_tensor else ""


def _length(position: int, name: str) -> Callable[[Step], int]:
    def count(step: Step) -> int:
        given = step.given(position, name)
        return len(given) if isinstance(given, tuple | list) else 1

    return count


def _pads(step: Step) -> int:
    given = step.given(1, "pad")
    return (len(given) + 1) // 2 if isinstance(given, tuple | list) else 99


POINTWISE = Rule(_pointwise, in_place=True)
SHAPED = Rule(_shaped)
_SIZED = replace(SHAPED, sizes=True)
_LAST = _trailing(lambda step: 1)
_TRUSTED_SIZES = Rule(_new, sizes=True)

_ELEMENTS = """
abs absolute acos acosh add addcdiv addcmul and_ arctan2 asin asinh atan atan2 atanh bitwise_and
bitwise_left_shift bitwise_not bitwise_or bitwise_right_shift bitwise_xor ceil celu clamp clamp_max
clamp_min clip complex copy copysign cos cosh deg2rad div divide elu eq erf erfc erfinv exp exp2 expm1
fill float_power floor floor_divide floordiv fmax fmin fmod frac gcd ge gelu greater greater_equal gt
hardshrink hardsigmoid hardswish hardtanh heaviside hypot iadd iand ifloordiv imod imul inv invert ior
ipow isfinite isinf isnan isneginf isposinf isub itruediv ixor lcm ldexp le leaky_relu lerp less
less_equal lgamma log log10 log1p log2 logaddexp logaddexp2 logical_and logical_not logical_or logical_xor
logit logsigmoid lshift lt masked_fill maximum minimum mish mod mul multiply nan_to_num ne neg negative
nextafter not_equal or_ polar pos positive pow rad2deg reciprocal relu relu6 remainder round rshift rsqrt
rsub selu sgn sigmoid sign signbit silu sin sinc sinh softplus softshrink softsign special_erf
special_expit sqrt square sub subtract swish tan tanh tanhshrink threshold true_divide truediv trunc where
xlogy xor zero
"""
_SAME_TOKENS = """
_to_copy adjoint alias bfloat16 bool byte char clone conj contiguous cpu cuda detach double empty_like
float half imag int lift_fresh_copy long moveaxis movedim ones_like permute real requires_grad_
resolve_conj short squeeze swapaxes swapdims t to transpose type type_as unsqueeze zeros_like
"""

RULES: Mapping[str, Rule] = {
    **dict.fromkeys(_ELEMENTS.split(), POINTWISE),
    **dict.fromkeys(_SAME_TOKENS.split(), SHAPED),
    **dict.fromkeys(("zeros", "ones", "empty", "new_zeros", "new_ones", "new_empty"), _TRUSTED_SIZES),
    **dict.fromkeys(("full", "full_like"), _filled(1)),
    "new_full": _filled(2),
    "arange": Rule(_arange, sizes=True),
    **dict.fromkeys(("expand", "expand_as", "broadcast_to"), Rule(_pointwise, sizes=True)),
    **dict.fromkeys(("repeat", "tile"), Rule(_repeat, sizes=True)),
    "repeat_interleave": Rule(_repeat_interleave),
    **dict.fromkeys(("view", "reshape", "_unsafe_view", "flatten", "unflatten"), Rule(_reshape, sizes=True)),
    **dict.fromkeys(
        ("sum", "nansum", "mean", "prod", "amax", "amin", "argmax", "argmin", "any"), along(1, None)
    ),
    **dict.fromkeys(
        ("all", "var", "std", "logsumexp", "count_nonzero", "var_mean", "std_mean"), along(1, None)
    ),
    **dict.fromkeys(("norm", "vector_norm", "linalg_vector_norm", "roll"), along(2, None)),
    **dict.fromkeys(("max", "min"), Rule(_either)),
    **dict.fromkeys(("softmax", "log_softmax", "softmin", "_softmax", "_log_softmax"), along(1, None)),
    **dict.fromkeys(("glu", "argsort", "sort", "median"), along(1, -1)),
    **dict.fromkeys(("topk", "kthvalue", "fft", "ifft", "rfft", "irfft"), along(2, -1)),
    **dict.fromkeys(("normalize", "cosine_similarity"), along(2, 1)),
    **dict.fromkeys(("cumsum", "cumprod", "cummax", "cummin"), SHAPED),
    "logcumsumexp": along(1, None),
    "flip": Rule(_varargs),
    **dict.fromkeys(("cat", "concat", "concatenate"), along(1, 0)),
    "stack": Rule(_stack),
    **dict.fromkeys(("chunk", "split", "tensor_split", "split_with_sizes", "select_scatter"), along(2, 0)),
    "slice_scatter": along(2, 0),
    **dict.fromkeys(("unbind", "select", "index_fill"), along(1, 0)),
    **dict.fromkeys(("gather", "scatter", "scatter_add", "scatter_reduce"), along(1, None)),
    "index_select": Rule(_index_select),
    **dict.fromkeys(("narrow", "slice"), Rule(sliced, sizes=True)),
    "getitem": Rule(_item_or_index, sizes=True),
    "setitem": Rule(setitem, sizes=True),
    "getattr": Rule(_attribute),
    **dict.fromkeys(("linear",), Rule(_linear)),
    **dict.fromkeys(("matmul", "mm", "bmm", "addmm", "baddbmm"), Rule(_matmul)),
    "einsum": Rule(_einsum),
    **dict.fromkeys(("outer", "ger"), SHAPED),
    "embedding": Rule(_embedding),
    "one_hot": SHAPED,
    **dict.fromkeys(
        ("layer_norm", "rms_norm", "native_layer_norm", "_fused_rms_norm"),
        _trailing(_length(1, "normalized_shape")),
    ),
    **dict.fromkeys(("group_norm", "_transformer_encoder_layer_fwd"), Rule(_samples)),
    "instance_norm": Rule(_instance_norm),
    "batch_norm": Rule(_batch_norm),
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), Rule(_convolution)),
    "pad": _trailing(_pads),
    **dict.fromkeys(("view_as_complex", "view_as_real"), Rule(_shaped)),
    "dropout": Rule(_dropout),
    ATTENTION: Rule(attention),
}
"""What is known: operation -> what has to be looked at."""

NUMBERS = frozenset(
    (
        *(
            "size",
            "sym_size",
            "numel",
            "sym_numel",
            "dim",
            "ndim",
            "ndimension",
            "stride",
            "sym_stride",
            "len",
        ),
        *("storage_offset", "sym_storage_offset", "__len__", "is_contiguous", "getattr", "element_size"),
        *("is_floating_point", "is_complex", "_assert_tensor_metadata", "getitem"),
    )
)
"""Operations that read no values of a tensor: what they give follows its shape."""


__all__ = [
    "ATTENTION",
    "NUMBERS",
    "POINTWISE",
    "RULES",
    "SHAPED",
    "UNKNOWN",
    "Place",
    "Rule",
    "along",
    "dims_of",
]
