"""Inductor in memory (``compile_fx``): what cannot be kept, but supports gradients everywhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from torch_piecewise.artifact import Artifact, LiveArtifact
from torch_piecewise.compilers.base import CompileOptions, described
from torch_piecewise.compilers.eager import live_runnable
from torch_piecewise.compilers.inductor_inputs import by_position, cache_tag, fake_inputs
from torch_piecewise.compilers.inductor_partitions import with_partitions
from torch_piecewise.compilers.inductor_passes import Patches
from torch_piecewise.piece import Piece
from torch_piecewise.ranges import Range
from torch_piecewise.torch_private import inductor
from torch_piecewise.torch_private.toolchain import with_known_cpu


class InductorMemoryCompiler:
    """Lives and dies with the process; the compiler for pieces that record gradients."""

    name = "inductor_memory"
    runs_passes = True

    def fingerprint(self) -> str:
        return f"inductor_memory torch={torch.__version__} git={torch.version.git_version}"

    def compile(self, piece: Piece, range: Range, options: CompileOptions) -> Artifact:
        piece = described(piece)
        patches = Patches.of(options)
        fakes = fake_inputs(piece, range)
        told = set(fakes.new_relations())
        runnable = inductor.inductor_in_memory(
            piece.graph,
            fakes,
            patches=with_known_cpu(with_partitions(patches.settings, piece, options)),
            cache_tag=cache_tag(range),
            partitions=options.partitions,
        )
        guards = by_position(piece, (text for text in fakes.new_relations() if text not in told))
        return LiveArtifact(
            self.name, piece.name, range, guards=guards, runnable=runnable, meta=patches.meta()
        )

    def load(self, artifact: Artifact) -> Callable[..., tuple[Any, ...]]:
        return live_runnable(artifact, self.name)
