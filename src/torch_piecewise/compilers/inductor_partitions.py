"""Inductor's settings for a piece whose partitions become functions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch_piecewise.compilers.base import CompileOptions
from torch_piecewise.piece import Piece, TensorSpec
from torch_piecewise.torch_private.partition_pass import partition_patches


def with_partitions(settings: Mapping[str, Any], piece: Piece, options: CompileOptions) -> Mapping[str, Any]:
    """``settings``, and what makes partition functions on the device that ``piece`` works on.

    What ``settings`` say themselves stays.
    """
    if not options.partitions:
        return settings
    types = {spec.device.type for spec in piece.inputs if isinstance(spec, TensorSpec)}
    working = sorted(types - {"cpu"}) or ["cpu"]
    return {**partition_patches(working[0]), **settings}
