"""The parameters and buffers a bundle reads: found by name in the user's model, and checked.

``rows`` is a list of ``[name, kind]``, in the order in which the program takes them; ``kinds[kind]`` says the
``table`` of a module that the tensor is in (None for one that is no parameter or buffer: its name is then an
expression), ``dtype``, ``size``, ``stride`` and ``device``. ``aliases``: name -> other names of the same
tensor. ``members``: name -> the member of the bundle with its bytes, of what no file of weights has.
``written``: positions in ``rows`` of what a call changes in place; ``shared``: pairs of positions, one of
them written, that lie in the same memory.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch

from torch_piecewise.errors import BundleError
from torch_piecewise.model_state import State, StateInput
from torch_piecewise.piece import TensorSpec

PLAIN_TENSORS = (torch.Tensor, torch.nn.Parameter)
"""Classes whose memory is what their sizes and strides say; a subclass may compute otherwise."""

_REMAKE = "load the weights, dtype and device that the bundle was baked with, or bake it for these"


def state_rows(document: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Name and kind of each parameter and buffer that has a name."""
    for name, index in document["rows"]:
        kind = document["kinds"][index]
        if kind["table"] is not None:
            yield name, kind


def bind_state(document: Mapping[str, Any], model: torch.nn.Module) -> State:
    """Find everything that the bundle reads of the model, and check it.

    Raises:
        BundleError: names the first parameter or buffer that is missing or differs.
    """
    kinds = [_Kind(kind) for kind in document["kinds"]]
    modules = dict(model.named_modules(remove_duplicate=False))
    inputs: list[StateInput] = []
    owners: set[str] = set()
    for name, index in document["rows"]:
        kind = kinds[index]
        if kind.table is None:
            inputs.append(StateInput(name, None, name, kind.spec[False]))
            continue
        owner, _, key = name.rpartition(".")
        holder = getattr(modules.get(owner), kind.table, {})
        tensor = holder.get(key)
        if tensor is None or not kind.fits(tensor):
            raise _misfit(name, *kind.difference(tensor))
        inputs.append(StateInput(name, holder, key, kind.spec[tensor.requires_grad]))
        owners.add(owner)
    tensors = [None if one.holder is None else one.holder[one.key] for one in inputs]
    _check_ties(document["aliases"], inputs, modules)
    _check_memory(document, inputs, tensors)
    return State(inputs, _children(owners, modules), list(modules.values()))


class _Kind:
    """What rows of one kind are."""

    def __init__(self, kind: Mapping[str, Any]) -> None:
        self.table: str | None = kind["table"]
        self._size, self._stride = tuple(kind["size"]), tuple(kind["stride"])
        self._dtype, self._device = getattr(torch, kind["dtype"]), torch.device(kind["device"])
        self.spec = {
            grad: TensorSpec(self._dtype, self._device, self._size, self._stride, requires_grad=grad)
            for grad in (False, True)
        }

    def fits(self, tensor: Any) -> bool:
        return (
            type(tensor) in PLAIN_TENSORS
            and tensor.dtype is self._dtype
            and tensor.shape == self._size
            and tensor.device == self._device
            and tensor.layout is torch.strided
            and tensor.stride() == self._stride
            and not tensor.is_conj()
            and not tensor.is_neg()
        )

    def difference(self, tensor: Any) -> tuple[str, str]:
        """What was expected and what was got, of a tensor that does not fit."""
        expected = _shown(self._dtype, self._size, self._device)
        if tensor is None:
            return expected, f"no {self.table[1:-1] if self.table else 'tensor'} of that name"
        if type(tensor) not in PLAIN_TENSORS:
            return "a plain tensor", f"a {type(tensor).__qualname__}"
        got = _shown(tensor.dtype, tensor.shape, tensor.device)
        if got != expected:
            return expected, got
        if tensor.layout is not torch.strided:
            return "a dense tensor", str(tensor.layout)
        if tensor.stride() != self._stride:
            return f"strides {_listed(self._stride)}", f"strides {_listed(tensor.stride())}"
        return "memory that holds its values", "a conjugate or negative view"


def _shown(dtype: torch.dtype, size: Sequence[int], device: torch.device) -> str:
    return f"{str(dtype).removeprefix('torch.')} {_listed(size)} on {device}"


def _listed(dims: Sequence[int]) -> str:
    return f"[{', '.join(map(str, dims))}]"


def _misfit(path: str, expected: str, got: str, hint: str = _REMAKE) -> BundleError:
    return BundleError(
        f"The model does not fit the bundle: {path} differs", expected=expected, got=got, hint=hint
    )


def _children(
    owners: Collection[str], modules: Mapping[str, torch.nn.Module]
) -> list[tuple[str, dict[str, Any], str]]:
    """Every module on the way to an owner: its path, and where it is held."""
    found: dict[str, tuple[str, dict[str, Any], str]] = {}
    for owner in sorted(owners):
        path = owner
        while path and path not in found:
            above, _, name = path.rpartition(".")
            found[path] = (path, modules[above]._modules, name)
            path = above
    return list(found.values())


# -- tensors that are one, or lie in one memory


def _check_ties(
    aliases: Mapping[str, Sequence[str]], inputs: Sequence[StateInput], modules: Mapping[str, torch.nn.Module]
) -> None:
    """The program reads one of several names: the others have to be the same tensor."""
    by_path = {one.path: one for one in inputs}
    for name, others in aliases.items():
        holder = by_path[name].holder
        assert holder is not None
        for other in others:
            owner, _, key = other.rpartition(".")
            module = modules.get(owner)
            tied = module is not None and (
                module._parameters.get(key) is holder[by_path[name].key]
                or module._buffers.get(key) is holder[by_path[name].key]
            )
            if not tied:
                raise _misfit(
                    other,
                    f"the same tensor as {name}",
                    "another, or none",
                    "tie them as they were when the bundle was baked, or bake it again",
                )


def _check_memory(
    document: Mapping[str, Any], inputs: Sequence[StateInput], tensors: Sequence[torch.Tensor | None]
) -> None:
    written = document["written"]
    baked = {tuple(pair) for pair in document["shared"]}
    found = {tuple(pair) for pair in shared_memory(tensors, written)} if written else set()
    for one, other in sorted(baked ^ found):
        texts = (f"apart from {inputs[other].path}", f"in the memory of {inputs[other].path}")
        was = (one, other) in baked
        raise _misfit(
            inputs[one].path,
            texts[was],
            texts[not was],
            "a call changes one of them in place: lay them out as they were when the bundle was baked",
        )


def shared_memory(tensors: Sequence[torch.Tensor | None], written: Collection[int]) -> list[list[int]]:
    """Pairs of positions, rising, whose tensors overlap in memory, at least one of them ``written``."""
    spans = sorted(
        (str(one.device), one.data_ptr(), one.data_ptr() + _extent(one), index)
        for index, one in enumerate(tensors)
        if one is not None and one.numel() and one.device.type != "meta"
    )
    pairs = []
    reaching: list[tuple[str, int, int, int]] = []
    for span in spans:
        reaching = [other for other in reaching if other[0] == span[0] and other[2] > span[1]]
        pairs += [sorted((other[3], span[3])) for other in reaching]
        reaching.append(span)
    return sorted(pair for pair in pairs if set(pair) & set(written))


def _extent(tensor: torch.Tensor) -> int:
    """Bytes from its first element to the end of its last."""
    steps = sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    return (steps + 1) * tensor.element_size()
