"""Indexing, slicing and writing to an index: does it pick tokens by their place in the batch?"""

from __future__ import annotations

from typing import Any

import torch

from torch_piecewise.padding_steps import Step

_PICKS = "picks tokens by their place in the batch"
_SIZE = "computes with the size"


def getitem(step: Step) -> str:
    """What is wrong with ``x[index]``."""
    base, index = step.node.args[:2]
    value = step.value(base)
    parts = _parts(index)
    if value is None or _sizes_misplaced(step, parts):
        return _SIZE
    listed = [part for part in parts if step.value(part) is not None]
    place = step.place(base)
    if place is None:
        places = {one.from_right for part in listed if (one := step.place(part)) is not None}
        return "" if len(places) <= 1 else _PICKS
    if any(step.place(part) is not None for part in listed):
        return _PICKS
    part = _part_of(step, parts, value.dim(), place.dim)
    texts = {one.text for one in step.result_places() if one is not None}
    return "" if _is_whole(part) and texts <= {place.text} else _PICKS


def setitem(step: Step) -> str:
    """What is wrong with ``x[index] = written``."""
    base, index, written = step.node.args[:3]
    value, place, parts = step.value(base), step.place(base), _parts(index)
    if step.is_size(written) or step.is_size(_flat(parts)):
        return _SIZE
    if value is None or place is None or any(step.value(part) is not None for part in parts):
        return "writes tokens to places that follow them"
    if not _is_whole(_part_of(step, parts, value.dim(), place.dim)):
        return _PICKS
    source = step.place(written)
    behind = _kept_behind(parts, value.dim(), place.dim)
    return "" if source is None or source.from_right == (behind + 1, place.text) else _PICKS


def sliced(step: Step) -> str:
    """What is wrong with ``narrow`` and ATen's ``slice``."""
    dim, start, place = step.given(1, "dim", default=0), step.given(2, "start"), step.place(step.first)
    value = step.value(step.first)
    if step.is_size(start) or step.is_size(dim) or value is None or not isinstance(dim, int):
        return _SIZE
    if place is None:
        negative = isinstance(start, int) and start < 0
        return _PICKS if negative else ""
    steps = step.given(4, "step", default=1)
    texts = {one.text for one in step.result_places() if one is not None}
    whole = start in (None, 0) and steps == 1 and texts <= {place.text}
    return "" if whole or place.dim != dim % place.rank else _PICKS


def _parts(index: Any) -> list[Any]:
    return list(index) if isinstance(index, tuple | list) else [index]


def _flat(parts: list[Any]) -> list[Any]:
    found: list[Any] = []
    for part in parts:
        found += [part.start, part.stop, part.step] if isinstance(part, slice) else [part]
    return found


def _sizes_misplaced(step: Step, parts: list[Any]) -> bool:
    """The size may end a slice that begins where every size begins, and nothing else."""
    for part in parts:
        if isinstance(part, slice):
            negative = isinstance(part.start, int) and part.start < 0
            if step.is_size([part.start, part.step]) or (negative and step.is_size(part.stop)):
                return True
        elif step.is_size(part):
            return True
    return False


def _part_of(step: Step, parts: list[Any], rank: int, dim: int) -> Any:
    """What an index says of one dim; a whole slice where it says nothing."""
    taking = sum(_takes(step, part) for part in parts)
    at = 0
    for part in parts:
        if part is Ellipsis:
            at += rank - taking
            if dim < at:
                return slice(None)
            continue
        takes = _takes(step, part)
        if takes and at <= dim < at + takes:
            return part
        at += takes
    return slice(None)


def _takes(step: Step, part: Any) -> int:
    """How many dims of what is indexed a part is about."""
    if part is None or part is Ellipsis:
        return 0
    value = step.value(part)
    if value is not None and value.dtype in (torch.bool, torch.uint8):
        return value.dim()
    return 0 if isinstance(part, bool) else 1


def _kept_behind(parts: list[Any], rank: int, dim: int) -> int:
    """How many dims stand behind ``dim`` in ``x[parts]``; no part is a tensor."""
    taking = sum(part is not None and part is not Ellipsis for part in parts)
    filled: list[Any] = []
    for part in parts:
        filled += [slice(None)] * (rank - taking) if part is Ellipsis else [part]
    filled += [slice(None)] * (rank - sum(part is not None for part in filled))
    at = behind = 0
    for part in filled:
        if at > dim and (part is None or isinstance(part, slice)):
            behind += 1
        at += part is not None
    return behind


def _is_whole(part: Any) -> bool:
    return isinstance(part, slice) and part.start in (None, 0) and part.step in (None, 1)
