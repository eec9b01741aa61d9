"""What people call the inputs of a traced graph."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch_piecewise.entry import Entry

_ARGUMENT = re.compile(r"L\['(\w+)'\]")
_SIZE = re.compile(r"(.*)\.(?:size\(\)|shape)\[(\d+)\]$")


def input_names(entry: Entry) -> Mapping[int, str]:
    """The name of each input by its position: of an argument as the call has it, of a weight its path."""
    names = {at: _plain(source) for at, source in enumerate(entry.convention.sources)}
    paths = (one.path for one in entry.state.inputs)
    return names | {at: _plain(path) for at, path in zip(sorted(entry.watched), paths, strict=True)}


def inputs_of_call(entry: Entry, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...] | None:
    """The inputs that a call gives its graph, without running it; None where it is not this entry's call."""

    def stop(*inputs: Any) -> tuple[Any, ...]:
        raise _Loaded(inputs)

    try:
        entry.call_with(lambda _key: stop, *args, **kwargs)
    except _Loaded as loaded:
        return loaded.inputs
    return None


class _Loaded(Exception):
    def __init__(self, inputs: tuple[Any, ...]) -> None:
        super().__init__()
        self.inputs = inputs


def _plain(source: str) -> str:
    size = _SIZE.match(source)
    if size is not None:
        return f"{_plain(size[1])} dim {size[2]}"
    return _ARGUMENT.sub(r"\1", source)
