"""AOTInductor: a piece as a shared object that starts with nothing but torch."""

from __future__ import annotations

import json
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from torch_piecewise.artifact import Artifact
from torch_piecewise.compilers.base import CompileOptions, described
from torch_piecewise.errors import CompilerError
from torch_piecewise.piece import Piece, TensorSpec
from torch_piecewise.ranges import Range
from torch_piecewise.runtime.piece import start_piece

# What compiles is imported where it is used: loading a kept artifact needs neither Inductor nor Dynamo.

_FORMAT = 1


class AOTInductorCompiler:
    """Slower to compile than ``inductor``, quicker to start and to call; for inference.

    The payload is JSON: the Python around the machine code, as source. The files are the shared object and,
    where the piece calls operators that Inductor does not generate, the list of those calls.
    """

    name = "aot_inductor"
    can_compile_in_worker = True
    keeps_artifacts = True
    runs_passes = True
    tasks_worth_a_worker = 1
    """A piece takes several times as long to compile as a worker to start."""

    def fingerprint(self) -> str:
        return f"aot_inductor {_FORMAT} torch={torch.__version__} git={torch.version.git_version}"

    def compile(self, piece: Piece, range: Range, options: CompileOptions) -> Artifact:
        from torch_piecewise.compilers.aot_call import plan_call
        from torch_piecewise.compilers.inductor_inputs import by_position, cache_tag, fake_inputs
        from torch_piecewise.compilers.inductor_passes import Patches
        from torch_piecewise.torch_private.aoti_compile import aoti_compile
        from torch_piecewise.torch_private.toolchain import with_known_cpu

        piece = described(piece)
        if options.ambient.grad_enabled:
            raise CompilerError(
                "AOTInductor's pieces record no gradients",
                expected="a call under torch.no_grad() or torch.inference_mode()",
                got="grad mode on",
                hint="backend='inductor' serves calls that record gradients",
            )
        patches = Patches.of(options)
        fakes = fake_inputs(piece, range)
        told = set(fakes.new_relations())
        plan = plan_call(piece.graph, fakes)
        files: dict[str, bytes | Path] = {}
        if plan.graph is not None:
            with tempfile.TemporaryDirectory(prefix="torch-piecewise-") as folder:
                made = aoti_compile(
                    plan.graph,
                    fakes,
                    plan.values,
                    Path(folder),
                    patches=with_known_cpu(patches.settings),
                    cache_tag=cache_tag(range),
                )
                files = {"piece" + path.suffix: path.read_bytes() for path in made}
        devices = {spec.device.type for spec in piece.inputs if isinstance(spec, TensorSpec)}
        payload = {"device": "cuda" if "cuda" in devices else "cpu", "source": plan.source}
        guards = by_position(piece, (text for text in fakes.new_relations() if text not in told))
        return Artifact(
            self.name, piece.name, range, json.dumps(payload).encode(), guards, files, patches.meta()
        )

    def warm_up(self, options: CompileOptions, devices: frozenset[str]) -> None:
        """Begin to build what all pieces for the CPU include, which takes seconds; load Inductor."""
        from torch_piecewise.torch_private import aoti_compile

        if "cpu" in devices:
            from torch_piecewise.torch_private.toolchain import with_known_cpu

            # Beside the first tasks: those wait for it only when they have code to build.
            arguments = (with_known_cpu(options.inductor_config),)
            threading.Thread(target=aoti_compile.build_aoti_headers, args=arguments, daemon=True).start()

    def load(self, artifact: Artifact) -> Callable[..., tuple[Any, ...]]:
        if artifact.compiler != self.name or not artifact.payload:
            raise CompilerError(
                f"Compiler {self.name!r} was handed an artifact it did not make",
                expected=f"an artifact of {self.name!r}",
                got=f"one of {artifact.compiler!r}, {len(artifact.payload)} bytes",
            )
        return start_piece(json.loads(artifact.payload), artifact.files)
