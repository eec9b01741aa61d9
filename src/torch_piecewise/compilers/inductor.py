"""Inductor through ``torch._inductor.standalone_compile``: artifacts that can be kept."""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from torch_piecewise.artifact import Artifact, LiveArtifact
from torch_piecewise.compilers.base import CompileOptions, described
from torch_piecewise.compilers.eager import live_runnable
from torch_piecewise.errors import CompilerError
from torch_piecewise.piece import Piece, TensorSpec
from torch_piecewise.ranges import Range

if TYPE_CHECKING:
    from torch_piecewise.torch_private.inductor import Lowered

# What compiles is imported where it is used: loading a kept artifact needs neither Inductor nor Dynamo.

_WRAPPER, _KERNELS = "wrapper.py", "kernels/"
"""The files of an unpacked artifact: the code Inductor wrote, C++ included, and what was built of that."""


class InductorCompiler:
    """Fast to compile; the artifact holds generated source and, on the CPU, the built kernels.

    An artifact has torch's own binary, and where that is possible the generated wrapper with its shared
    objects, which start without Inductor and without a C++ compiler. What torch itself does not write down
    lives and dies with the process.
    """

    name = "inductor"
    can_compile_in_worker = True
    keeps_artifacts = True
    runs_passes = True
    tasks_worth_a_worker = 16
    """Lowering a piece takes a tenth of what a worker takes to start."""

    def fingerprint(self) -> str:
        return f"inductor torch={torch.__version__} git={torch.version.git_version}"

    def compile(self, piece: Piece, range: Range, options: CompileOptions) -> Artifact:
        return self.begin(piece, range, options)()

    def begin(self, piece: Piece, range: Range, options: CompileOptions) -> Callable[[], Artifact]:
        """Lower the piece; what is returned builds the kernels."""
        from torch_piecewise.compilers.inductor_inputs import by_position, cache_tag, fake_inputs
        from torch_piecewise.compilers.inductor_partitions import with_partitions
        from torch_piecewise.compilers.inductor_passes import Patches
        from torch_piecewise.torch_private.inductor import inductor_in_memory, inductor_standalone
        from torch_piecewise.torch_private.toolchain import with_known_cpu

        piece = described(piece)
        patches = Patches.of(options)
        keepable = patches.keepable and not _records_gradients(piece, options)
        fakes = fake_inputs(piece, range)
        told = set(fakes.new_relations())
        lowered = (inductor_standalone if keepable else inductor_in_memory)(
            piece.graph,
            fakes,
            patches=with_known_cpu(with_partitions(patches.settings, piece, options)),
            cache_tag=cache_tag(range),
            partitions=options.partitions,
        )
        guards = by_position(piece, (text for text in fakes.new_relations() if text not in told))
        about = (self.name, piece.name, range)
        if callable(lowered):
            live = LiveArtifact(*about, guards=guards, runnable=lowered, meta=patches.meta())
            return lambda: live

        def finish() -> Artifact:
            lowered.build_kernels()
            if not isinstance(lowered.whole, bytes):
                return LiveArtifact(*about, guards=guards, runnable=lowered.whole, meta=patches.meta())
            payload, kernels = _payload(lowered, partitions=options.partitions)
            return Artifact(*about, payload, guards, kernels, patches.meta())

        return finish

    def warm_up(self, options: CompileOptions, devices: frozenset[str]) -> None:
        """Begin to build what all kernels for the CPU share, which takes seconds."""
        if "cpu" in devices:
            from torch_piecewise.torch_private.toolchain import begin_shared_header, with_known_cpu

            begin_shared_header(with_known_cpu(options.inductor_config))

    def load(self, artifact: Artifact) -> Callable[..., tuple[Any, ...]]:
        if isinstance(artifact, LiveArtifact):
            return live_runnable(artifact, self.name)
        if artifact.compiler != self.name or not artifact.payload:
            raise CompilerError(
                f"Compiler {self.name!r} was handed an artifact it did not make",
                expected=f"an artifact of {self.name!r}",
                got=f"one of {artifact.compiler!r}, {len(artifact.payload)} bytes",
            )
        payload = pickle.loads(artifact.payload)
        if payload["source"] is None:
            from torch_piecewise.torch_private import inductor

            partitions = payload.get("partitions", False)
            load = inductor.load_inductor_partitioned if partitions else inductor.load_inductor_standalone
            return load(payload["whole"])
        from torch_piecewise.torch_private.generated_code import load_generated_code

        with tempfile.TemporaryDirectory(prefix="torch-piecewise-") as folder:
            kernels = _on_disk(artifact.files, Path(folder))
            return load_generated_code(payload["source"], kernels, build=payload.get("unpacked", False))

    def unpack(self, artifact: Artifact) -> dict[str, bytes]:
        """The artifact as files that can be read and edited: the generated wrapper and its built kernels.

        Raises:
            CompilerError: only torch can load it, in its own binary form.
        """
        source = self.readable(artifact)
        if not source:
            raise CompilerError(
                "This artifact holds torch's own binary, which has no unpacked format",
                expected="a CPU piece without constants, gradients or inputs to update after the call",
                got=f"piece {artifact.piece}",
                hint="save it with format='binary'; debug_dump_path shows what Inductor generated",
            )
        kernels = {f"{_KERNELS}{name}.so": content for name, content in artifact.files.items()}
        built = {name: c if isinstance(c, bytes) else c.read_bytes() for name, c in kernels.items()}
        return {_WRAPPER: source.encode(), **built}

    def pack(self, artifact: Artifact, files: Mapping[str, bytes]) -> Artifact:
        """What :meth:`unpack` gave, edited perhaps; a kernel whose C++ was edited is built on loading.

        Raises:
            SyntaxError: the wrapper was edited to something that is no Python; names file and line.
        """
        source = files[_WRAPPER].decode()
        # Only to have a mistake told here, where the file's name is known.
        compile(source, _WRAPPER, "exec", dont_inherit=True)
        payload = {"whole": None, "source": source, "unpacked": True}
        kernels = {
            name.removeprefix(_KERNELS).removesuffix(".so"): content
            for name, content in files.items()
            if name.startswith(_KERNELS)
        }
        return replace(artifact, payload=pickle.dumps(payload), files=kernels)

    def readable(self, artifact: Artifact) -> str:
        """The generated wrapper with its kernels' sources; empty where the artifact holds torch's binary."""
        if not artifact.payload:
            return ""
        source = pickle.loads(artifact.payload)["source"]
        return source if isinstance(source, str) else ""


def _payload(lowered: Lowered, *, partitions: bool) -> tuple[bytes, dict[str, bytes | Path]]:
    """What is kept, and the kernels beside it."""
    from torch_piecewise.torch_private.generated_code import generated_code

    assert isinstance(lowered.whole, bytes)
    with lowered.settings():
        code = generated_code(lowered.whole)
    source = code.source if code is not None else None
    payload = pickle.dumps({"whole": lowered.whole, "source": source, "partitions": partitions})
    return payload, dict(code.kernels) if code is not None else {}


def _records_gradients(piece: Piece, options: CompileOptions) -> bool:
    """Whether calls want gradients: standalone artifacts are made for inference."""
    inputs = (spec for spec in piece.inputs if isinstance(spec, TensorSpec))
    return options.ambient.grad_enabled and any(spec.requires_grad for spec in inputs)


def _on_disk(files: Mapping[str, bytes | Path], folder: Path) -> dict[str, Path]:
    """Every file as a path; a shared object that is mapped may lose its name in the file system."""
    paths = {}
    for name, content in files.items():
        if isinstance(content, Path):
            paths[name] = content
        else:
            paths[name] = folder / f"{name}.so"
            paths[name].write_bytes(content)
    return paths
