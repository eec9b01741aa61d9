"""Inductor through ``torch._inductor.standalone_compile``: artifacts that can be kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from torch_piecewise.artifact import Artifact
from torch_piecewise.compilers.base import CompileOptions, tuning_size
from torch_piecewise.errors import CompilerError
from torch_piecewise.piece import Piece
from torch_piecewise.ranges import Range
from torch_piecewise.torch_private import inductor
from torch_piecewise.torch_private.fake_inputs import FakeInputs


class InductorCompiler:
    """Fast to compile; the artifact holds generated source and metadata as one binary."""

    name = "inductor"
    can_compile_in_worker = True

    def fingerprint(self) -> str:
        return f"inductor torch={torch.__version__} git={torch.version.git_version}"

    def compile(self, piece: Piece, range: Range, options: CompileOptions) -> Artifact:
        fakes = fake_inputs(piece, range)
        told = set(fakes.new_relations())
        with torch.set_grad_enabled(options.grad_enabled):
            payload = inductor.inductor_standalone(
                piece.graph, fakes, patches=dict(options.inductor_config), cache_tag=str(range)
            )
        guards = tuple(text for text in fakes.new_relations() if text not in told)
        return Artifact(self.name, piece.name, range, payload, guards)

    def load(self, artifact: Artifact) -> Callable[..., tuple[Any, ...]]:
        if artifact.compiler != self.name or not artifact.payload:
            raise CompilerError(
                f"Compiler {self.name!r} was handed an artifact it did not make",
                expected=f"an artifact of {self.name!r}",
                got=f"one of {artifact.compiler!r}, {len(artifact.payload)} bytes",
            )
        return inductor.load_inductor_standalone(artifact.payload)


def fake_inputs(piece: Piece, range: Range) -> FakeInputs:
    """Fresh fake inputs of ``piece`` for ``range``."""
    hints = {symbol.name: symbol.hint for symbol in piece.symbols}
    hint = tuning_size(range, hints.get(piece.dispatch or "", range.start))
    # A range that begins at 1 serves size 0 as well, where the model allows it.
    start = 0 if range.start == 1 and not range.is_single_size() else range.start
    return FakeInputs(piece, (start, range.end), hint)
