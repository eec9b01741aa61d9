"""A compiler of your own: each piece goes to ONNX Runtime, and what that cannot take stays eager.

Run it: ``pip install onnxruntime onnx onnxscript``, then ``python examples/onnxruntime_compiler.py``. It
compiles a small model for any batch size, compares it with eager mode, and says which pieces went where.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import torch_piecewise as tp
from torch_piecewise.artifact import Artifact
from torch_piecewise.compilers.base import CompileOptions
from torch_piecewise.errors import CompilerError
from torch_piecewise.graph_bytes import from_bytes, to_bytes
from torch_piecewise.piece import ConstantSpec, IntSpec, Piece, TensorSpec

PACKAGES = ("onnxruntime", "onnx", "onnxscript")
DTYPES = (torch.float32, torch.float64, torch.int64, torch.int32, torch.bool)
ONNX, EAGER = b"onnx\n", b"eager\n"
"""How a payload begins: an ONNX model, or the piece itself."""


class OnnxRuntimeCompiler:
    """For inference on the CPU.

    It is a value: what it needs for a piece travels in the artifact, so artifacts can be kept, sent to other
    processes and loaded by them.
    """

    name = "onnxruntime"
    keeps_artifacts = True
    # A worker process can import this class only from a module, not from a script that is being run.
    can_compile_in_worker = __name__ != "__main__"

    def fingerprint(self) -> str:
        """Everything that makes another artifact out of the same piece."""
        versions = (f"{package}={importlib.metadata.version(package)}" for package in PACKAGES)
        return f"1 torch={torch.__version__} {' '.join(versions)}"

    def compile(self, piece: Piece, range: tp.Range, options: CompileOptions) -> Artifact:
        """An ONNX model of the piece; the piece itself where there is none."""
        try:
            # Running the piece to look at it must not use up random numbers of the model's.
            with torch.random.fork_rng(devices=[]):
                payload = ONNX + onnx_model(piece, options)
        except NotForOnnx as reason:
            print(f"{piece.name} stays eager: {reason}")
            payload = EAGER + to_bytes(piece.graph)
        return Artifact(self.name, piece.name, range, payload)

    def load(self, artifact: Artifact) -> Callable[..., tuple[Any, ...]]:
        """A function of the piece's inputs that returns a tuple."""
        if artifact.compiler != self.name:
            raise CompilerError(f"{self.name} was handed an artifact of {artifact.compiler}")
        kind, _, content = artifact.payload.partition(b"\n")
        return from_bytes(content).forward if kind + b"\n" == EAGER else session(content)


class NotForOnnx(Exception):
    """Why a piece is left as it is."""


@dataclass(frozen=True)
class Example:
    """Inputs to export a piece with.

    Attributes:
        values: one for each input of the piece.
        tensors: positions of those that are tensors; the others are read off them, or constants.
        dynamic: for each tensor, the dims that change.
    """

    values: list[Any]
    tensors: list[int]
    dynamic: list[dict[int, Any]]


class Tensors(nn.Module):
    """A piece as a module of tensors alone: ONNX knows no other inputs."""

    def __init__(self, piece: Piece, example: Example) -> None:
        super().__init__()
        self.graph = piece.graph
        self.readers = [reader(piece, index, example) for index in range(len(piece.inputs))]

    def forward(self, *tensors: torch.Tensor) -> tuple[Any, ...]:
        return self.graph(*(read(tensors) for read in self.readers))


def reader(piece: Piece, index: int, example: Example) -> Callable[[Sequence[torch.Tensor]], Any]:
    """How one input of the piece comes from the tensors."""
    spec = piece.inputs[index]
    if isinstance(spec, ConstantSpec):
        return lambda tensors: spec.value
    if isinstance(spec, TensorSpec):
        position = example.tensors.index(index)
        return lambda tensors: tensors[position]
    for place, other in enumerate(example.tensors):
        sizes = piece.inputs[other].size
        if spec.value in sizes:
            dim = sizes.index(spec.value)
            return lambda tensors: tensors[place].size(dim)
    raise NotForOnnx(f"input {index} is a number that no tensor's size tells")


def example_of(piece: Piece) -> Example:
    """Inputs with a different, unremarkable size for each symbol, so that none is taken for another."""
    sizes = {symbol.name: 7 + 4 * number for number, symbol in enumerate(piece.symbols)}
    values: list[Any] = []
    tensors, dynamic = [], []
    for index, spec in enumerate(piece.inputs):
        if isinstance(spec, IntSpec):
            values.append(sizes.get(spec.value, spec.value))
        elif isinstance(spec, ConstantSpec):
            values.append(spec.value)
        else:
            values.append(tensor_like(spec, sizes))
            tensors.append(index)
            dynamic.append({dim: torch.export.Dim.DYNAMIC for dim, n in enumerate(spec.size) if n in sizes})
    return Example(values, tensors, dynamic)


def tensor_like(spec: TensorSpec, sizes: dict[str, int]) -> torch.Tensor:
    if spec.device.type != "cpu" or spec.dtype not in DTYPES:
        raise NotForOnnx(f"an input is {spec.dtype} on {spec.device}")
    if any(isinstance(n, str) and n not in sizes for n in spec.size):
        raise NotForOnnx(f"an input has a computed size: {spec.size}")
    shape = [sizes.get(n, n) for n in spec.size]
    return (
        torch.rand(shape).to(spec.dtype)
        if spec.dtype.is_floating_point
        else torch.zeros(shape, dtype=spec.dtype)
    )


def onnx_model(piece: Piece, options: CompileOptions) -> bytes:
    """The piece as a serialised ONNX model, its sizes left open.

    Raises:
        NotForOnnx: it means something that an ONNX model cannot say.
    """
    if options.ambient.grad_enabled:
        raise NotForOnnx("gradients are recorded")
    example = example_of(piece)
    inputs = [example.values[index] for index in example.tensors]
    refuse_outputs(piece, example)
    sizes = {"tensors": tuple(example.dynamic)}
    try:
        with torch.no_grad():
            exported = torch.export.export(Tensors(piece, example), tuple(inputs), dynamic_shapes=sizes)
            # Writes are in the signature once the graph is functional.
            exported = exported.run_decompositions({})
            refuse_effects(exported)
            program = torch.onnx.export(exported, dynamo=True, verbose=False)
    except NotForOnnx:
        raise
    except Exception as error:  # whatever the exporter does not know
        raise NotForOnnx(f"{type(error).__name__}: {str(error).splitlines()[0]}") from error
    return program.model_proto.SerializeToString()


def refuse_outputs(piece: Piece, example: Example) -> None:
    """Outputs of an ONNX model are tensors with memory of their own, of types that NumPy has too."""
    values = [value.clone() if is_tensor(value) else value for value in example.values]
    with torch.no_grad():
        outputs = piece.graph(*values)
    if not all(is_tensor(value) and value.dtype in DTYPES for value in outputs):
        raise NotForOnnx("an output is no tensor, or one of a type that cannot be passed on")
    memory = [value.untyped_storage().data_ptr() for value in (*values, *outputs) if is_tensor(value)]
    if len(set(memory)) < len(memory):
        raise NotForOnnx("an output shares memory with an input or another output")


def refuse_effects(exported: torch.export.ExportedProgram) -> None:
    """An ONNX model does not write into its inputs, and draws other random numbers than torch."""
    if exported.graph_signature.user_inputs_to_mutate:
        raise NotForOnnx("an input is written to")
    for node in exported.graph.nodes:
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            raise NotForOnnx(f"{node.target} draws random numbers")


def is_tensor(value: object) -> bool:
    return isinstance(value, torch.Tensor)


def session(model: bytes) -> Callable[..., tuple[torch.Tensor, ...]]:
    """A function that runs a serialised model; memory of inputs and outputs is not copied."""
    import onnxruntime

    running = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    names = [given.name for given in running.get_inputs()]

    def run(*values: Any) -> tuple[torch.Tensor, ...]:
        arrays = [value.detach().contiguous().numpy() for value in values if is_tensor(value)]
        return tuple(map(torch.from_numpy, running.run(None, dict(zip(names, arrays, strict=True)))))

    return run


# The model: two linear layers around an operation that is neither ONNX's nor ours to compile.


@tp.splitting_op("example_ort::mix", mutates_args=("out",))
def mix(x: torch.Tensor, out: torch.Tensor) -> None:
    """Attention of the rows of [n, d] over one another, written into ``out``."""
    out.copy_(torch.softmax(x @ x.t(), -1) @ x)


class Block(nn.Module):
    """A norm, a linear layer and the operation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.inner = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mixed = torch.empty_like(x)
        mix(self.norm(x), mixed)
        return x + torch.nn.functional.gelu(self.inner(mixed))


class Model(nn.Module):
    """Blocks, and a running sum of how often it was called: a write that ONNX cannot do."""

    def __init__(self, depth: int, width: int = 16) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        self.calls.add_(1)
        return x * 2


def main() -> None:
    model, reference = Model(3).eval(), Model(3).eval()
    reference.load_state_dict(model.state_dict())
    tp.compile(
        model,
        backend=OnnxRuntimeCompiler(),
        splitting_ops=["example_ort::mix"],
        dynamic_arg_dims={"x": 0},
        disable_cache=True,
    )
    with torch.no_grad():
        for size in (5, 1, 40):
            x = torch.randn(size, 16)
            difference = (model(x) - reference(x)).abs().max().item()
            print(f"{size} rows: largest difference from eager {difference:.1e}")
    stats = tp.program_of(model).stats
    print(
        f"{stats.pieces} pieces, {stats.distinct_pieces} of them different; calls counted: {int(model.calls)}"
    )


if __name__ == "__main__":
    main()
