"""What people get wrong, and what they are told: each test is about the message."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import torch_piecewise as tp
from tests.graphs import Stack
from torch_piecewise.artifact import Artifact, LiveArtifact
from torch_piecewise.compilers.base import CompileOptions
from torch_piecewise.compilers.eager import EagerCompiler
from torch_piecewise.compilers.inductor_passes import Patches
from torch_piecewise.dispatch import serving_range
from torch_piecewise.errors import (
    CaptureError,
    CompileError,
    CompilerError,
    ConfigError,
    DispatchError,
    DynamicDimError,
    GraphBreakError,
    GuardError,
    PieceCompileError,
    SplitError,
)
from torch_piecewise.piece import Piece
from torch_piecewise.ranges import Range
from torch_piecewise.torch_private.blame import blamed

pytestmark = pytest.mark.usefixtures("no_grad")


def stack(**fields: Any) -> Stack:
    return tp.compile(Stack(1), **{"backend": "eager", "dynamic_arg_dims": {"ids": 0}, **fields})


def ids(count: int = 3) -> Tensor:
    return torch.arange(count)


def says(*parts: str) -> str:
    """A pattern: the parts, each as it stands, in this order."""
    return "(?s)" + ".*".join(re.escape(part) for part in parts)


# -- settings


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("tests::atention", ("got: torch.ops.tests has no 'atention'", "did you mean attention?")),
        ("nowhere::op", ("got: torch.ops.nowhere has no 'op'", "import the module that registers it first")),
        ("tests::attention.other", ("tests::attention has: default", "got: 'other'", "name one of them")),
        ("torch.nn.functional.rellu", ("torch.nn.functional", "no attribute 'rellu'", "did you mean relu")),
        ("no_module.op", ("got: no module 'no_module'",)),
    ],
)
def test_a_splitting_op_that_does_not_exist(name: str, parts: tuple[str, ...]) -> None:
    model = stack(splitting_ops=[name])
    with pytest.raises(SplitError, match=says(f"Splitting op {name!r} does not exist", "expected:", *parts)):
        model(ids())


def test_a_splitting_op_that_never_occurs(caplog: pytest.LogCaptureFixture) -> None:
    model = stack(splitting_ops=["aten::cumsum", "tests::attention"])
    model(ids())
    warnings = [record.getMessage() for record in caplog.records if record.name.startswith("torch_piecewise")]
    (text,) = warnings
    assert text.startswith("splitting op 'aten::cumsum' never occurs in the traced graph, so nothing is cut")
    assert "the graph holds tests::attention, tests::attention.default, " in text


@pytest.mark.parametrize("value", [0, -3, 1.5, "64", True])
def test_an_endpoint_that_is_no_size(value: Any) -> None:
    expected = says(
        "compile_ranges_endpoints[1] has a value it cannot have",
        "expected: an integer >= 1",
        f"got: {value!r}",
        "to do:",
    )
    with pytest.raises(ConfigError, match=expected):
        stack(compile_ranges_endpoints=[64, value])


def test_endpoints_that_are_no_list() -> None:
    with pytest.raises(ConfigError, match=says("expected: a list, such as [64, 512]", "to do: write a list")):
        stack(compile_ranges_endpoints=64)


def test_a_field_that_does_not_exist() -> None:
    with pytest.raises(
        ConfigError, match=says("Config has no field 'split_ops'", "did you mean 'splitting_ops'?")
    ):
        stack(split_ops=[])


def test_an_argument_that_the_model_lacks() -> None:
    expected = says(
        "names an argument that Stack.forward lacks", "expected: one of ids", "got: 'idx'", "did you mean"
    )
    with pytest.raises(ConfigError, match=expected):
        stack(dynamic_arg_dims={"idx": 0})


@pytest.mark.parametrize("dim", [1, -2])
def test_a_dynamic_dim_that_the_tensor_lacks(dim: int) -> None:
    expected = says(
        f"Dynamic dim {dim} of argument 'ids' is out of range",
        "expected: a dim of a 1-d tensor",
        f"got: dim {dim}, shape (3,)",
        "to do: correct dynamic_arg_dims",
    )
    with pytest.raises(DynamicDimError, match=expected):
        stack(dynamic_arg_dims={"ids": dim})(ids())


def test_a_size_that_no_range_serves() -> None:
    expected = says(
        "No compiled range serves size 9",
        "expected: a size in [1, 4], [5, 8] or one of 16",
        "got: 9",
        "to do: add an endpoint to compile_ranges_endpoints, or the size to compile_sizes",
    )
    with pytest.raises(DispatchError, match=expected):
        serving_range(9, [Range(1, 4), Range(5, 8)], [16])


@pytest.mark.parametrize(
    ("backend", "parts"),
    [
        ("inducter", ("backend has a value it cannot have", "did you mean 'inductor'")),
        ("tests.test_bad_input.Absent", ("does not resolve to a compiler", "has no attribute 'Absent'")),
        ("tests.test_bad_input.Refusin", ("does not resolve to a compiler", "did you mean 'Refusing'?")),
        ("no_module.Compiler", ("does not resolve to a compiler", "No module named 'no_module'")),
        ("collections.OrderedDict", ("is not a compiler", "without name, fingerprint, compile, load")),
    ],
)
def test_a_compiler_that_cannot_be_found(backend: str, parts: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match=says(*parts)):
        stack(backend=backend)(ids())


@pytest.mark.parametrize("wrong", [torch.ones(3), "model", int])
def test_what_is_no_model(wrong: Any) -> None:
    with pytest.raises(ConfigError, match=says("This object cannot be compiled", "expected: an nn.Module")):
        tp.compile(wrong, backend="eager")


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_torchscript() -> None:
    scripted = torch.jit.script(nn.Linear(3, 3))
    with pytest.raises(
        ConfigError, match=says("TorchScript cannot be compiled", "as it was before torch.jit.script")
    ):
        tp.compile(scripted, backend="eager", dynamic_arg_dims={"input": 0})
    inside = tp.compile(nn.Sequential(scripted), backend="eager", dynamic_arg_dims={"input": 0})
    # torch 2.13 speaks of torch.jit.script modules, 2.11 of ScriptModules.
    with pytest.raises(GraphBreakError, match=r"got: .*(torch\.jit\.script|ScriptModules).* unsupported"):
        inside(torch.ones(2, 3))


# -- compilers


class Refusing(EagerCompiler):
    """Has no code for softplus in sizes above 4, while ``broken``."""

    name = "refusing"
    broken = True

    def compile(self, piece: Piece, range: Range, options: CompileOptions) -> Artifact:
        targets = [getattr(node.target, "__name__", "") for node in piece.graph.graph.nodes]
        if self.broken and "softplus" in targets and range.start > 4:
            raise NotImplementedError("no kernel for softplus\nand no second line")
        return LiveArtifact(self.name, piece.name, range, runnable=piece.graph.forward)

    def load(self, artifact: Artifact) -> Callable[..., tuple[Any, ...]]:
        return artifact.runnable  # type: ignore[attr-defined]


class Silent(Refusing):
    def compile(self, piece: Piece, range: Range, options: CompileOptions) -> Any:
        return None


class Foreign(Refusing):
    def compile(self, piece: Piece, range: Range, options: CompileOptions) -> Artifact:
        return LiveArtifact("other", piece.name, range, runnable=piece.graph.forward)

    def load(self, artifact: Artifact) -> Callable[..., tuple[Any, ...]]:
        return EagerCompiler.load(self, artifact)


class Idle(Refusing):
    broken = False

    def load(self, artifact: Artifact) -> Any:
        return 3


def waves(x: Tensor) -> Tensor:
    y = functional.relu(torch.sin(x))
    y = functional.softplus(y) + 1
    return functional.relu(y) * 2


def cut_waves(compiler: type[Any], **fields: Any) -> Any:
    settings = {"splitting_ops": ["torch.nn.functional.relu"], "compile_ranges_endpoints": [4, 8], **fields}
    return tp.compile(waves, backend=f"{__name__}.{compiler.__name__}", **settings)


def test_a_piece_that_the_compiler_rejects_is_named_with_range_op_and_line() -> None:
    line = waves.__code__.co_firstlineno + 2
    expected = says(
        "submod_2 failed to compile for sizes [5, 8] with 'refusing'",
        "got: NotImplementedError: no kernel for softplus\n",
        "to do: the failing op is softplus",
        f"test_bad_input.py:{line} (y = functional.softplus(y) + 1)",
        "on_piece_error='eager' runs this piece uncompiled",
    )
    with pytest.raises(PieceCompileError, match=expected) as caught:
        cut_waves(Refusing)(torch.ones(3))
    assert isinstance(caught.value.__cause__, NotImplementedError)


class Failing(Refusing):
    """Fails as a whole: a compiler process that died, a disk that is full."""

    def compile(self, piece: Piece, range: Range, options: CompileOptions) -> Artifact:
        raise OSError("no space left to add or split anything")


def test_a_compiler_that_failed_as_a_whole_is_not_said_to_have_failed_at_an_op() -> None:
    first, line = f"{__file__}:{waves.__code__.co_firstlineno + 1}", "(y = functional.relu(torch.sin(x)))"
    with pytest.raises(PieceCompileError) as caught:
        cut_waves(Failing, compile_ranges_endpoints=[])(torch.ones(3))
    assert str(caught.value) == (
        "submod_0 failed to compile for sizes [1, inf] with 'refusing'\n"
        "  expected: a piece that the compiler accepts\n"
        "  got: OSError: no space left to add or split anything\n"
        "  to do: the compiler does not say which op it failed at; "
        f"the piece is from {first} {line}; on_piece_error='eager' runs this piece uncompiled"
    )


@pytest.mark.parametrize(
    ("said", "named"),
    [
        ("LoweringException: bad\n  target: aten.softplus.default\n  args[0]: x", "softplus"),
        ("aten::add is not supported", "add"),
        ("cannot lower 'add'", "add"),
        ("out of memory in my_own_kernel, please add some", None),
    ],
)
def test_an_op_is_blamed_where_the_error_names_it(said: str, named: str | None) -> None:
    graph = torch.fx.symbolic_trace(lambda x: functional.softplus(x) + 1)
    says_which = f"the failing op is {named}, from an unknown line"
    unknown = "the compiler does not say which op it failed at"
    assert blamed(RuntimeError(said), graph) == (says_which if named else unknown)


def test_a_misspelt_setting_of_inductor_is_told_as_one() -> None:
    options = CompileOptions({"max_autotun": True, "triton.cudagraphs": False, "max_autotune": True})
    with pytest.raises(ConfigError) as caught:
        Patches.of(options)
    assert str(caught.value) == (
        "inductor_compile_config names what Inductor has no setting for\n"
        "  expected: names of torch._inductor.config\n"
        "  got: max_autotun\n"
        "  to do: did you mean 'max_autotune' or 'max_autotune_gemm' or 'max_autotune_pointwise'?"
    )


class Misconfigured(Refusing):
    def compile(self, piece: Piece, range: Range, options: CompileOptions) -> Artifact:
        raise ConfigError("a setting is wrong")


def test_a_wrong_setting_is_not_told_as_a_piece_that_failed() -> None:
    with pytest.raises(ConfigError, match=r"^a setting is wrong$"):
        cut_waves(Misconfigured)(torch.ones(3))


def test_an_op_that_the_piece_does_not_write_itself_is_named_without_a_line() -> None:
    graph = torch.fx.symbolic_trace(lambda x: functional.softplus(x))
    error = RuntimeError("LoweringException: bad\n  target: aten.log1p.default")
    assert blamed(error, graph) == "the failing op is log1p"


def test_after_a_rejected_piece_nothing_half_built_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    model = cut_waves(Refusing)
    for _ in range(2):
        with pytest.raises(PieceCompileError):
            model(torch.ones(3))
    assert tp.program_of(model).entries == ()
    monkeypatch.setattr(Refusing, "broken", False)
    for size in (3, 1, 6, 20):
        x = torch.randn(size)
        assert torch.equal(model(x), waves(x))
    assert len(tp.program_of(model).entries) == 1


def test_a_rejected_piece_runs_eagerly_where_that_is_asked_for() -> None:
    model = cut_waves(Refusing, on_piece_error="eager")
    for size in (3, 1, 6, 20):
        x = torch.randn(size)
        assert torch.equal(model(x), waves(x))
    assert tp.program_of(model).counters["pieces_failed"] == 2, "one for [5, 8], one for [9, ...]"


@pytest.mark.parametrize("on_piece_error", ["raise", "eager"])
@pytest.mark.parametrize(
    ("compiler", "parts"),
    [
        (
            Silent,
            ("Compiler 'refusing' returned no artifact for submod_0", "expected: an Artifact", "got: None"),
        ),
        (Foreign, ("'refusing' was handed an artifact it did not make", "got: LiveArtifact of 'other'")),
        (
            Idle,
            ("'refusing' loaded nothing that can be called for submod_0", "expected: a callable", "got: 3"),
        ),
    ],
)
def test_a_compiler_that_breaks_its_protocol(
    compiler: type[Any], parts: tuple[str, ...], on_piece_error: str
) -> None:
    with pytest.raises(CompilerError, match=says(*parts)):
        cut_waves(compiler, on_piece_error=on_piece_error)(torch.ones(3))


# -- models


def test_a_branch_on_data() -> None:
    def branching(x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x + 1
        return x - 1

    expected = says(
        "The model breaks the graph at", "test_bad_input.py", "(if x.sum() > 0:)",
        "got: Data-dependent branching", "to do:", "torch.cond",
    )  # fmt: skip
    with pytest.raises(GraphBreakError, match=expected):
        tp.compile(branching, backend="eager")(torch.ones(3))


def test_a_layer_that_dynamo_does_not_trace() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.GRU(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.cell(x)[0]

    expected = says(
        "The model breaks the graph at", "test_bad_input.py", "(return self.cell(x)[0])",
        "got: Attempted to wrap RNN, GRU, or LSTM", "to do:", "allow_rnn=True",
    )  # fmt: skip
    with pytest.raises(GraphBreakError, match=expected):
        tp.compile(Recurrent(), backend="eager")(torch.ones(3, 3))


@torch.library.custom_op("tests::without_fake", mutates_args=())
def without_fake(x: Tensor) -> Tensor:
    return x.clone()


def test_a_custom_op_without_a_fake_kernel() -> None:
    def using(x: Tensor) -> Tensor:
        return without_fake(x) + 1

    expected = says(
        "An operation refuses fake inputs in the trace, at", "test_bad_input.py",
        "(return without_fake(x) + 1)",
        "got: RuntimeError('There was no fake impl registered for <CustomOpDef(tests::without_fake)>",
        "to do: correct its fake kernel (torch.library.register_fake)",
    )  # fmt: skip
    with pytest.raises(CaptureError, match=expected):
        tp.compile(using, backend="eager")(torch.ones(3))


def test_a_library_op_without_a_fake_kernel() -> None:
    with torch.library._scoped_library("tests_bare", "DEF") as library:
        library.define("copied(Tensor x) -> Tensor")
        library.impl("copied", torch.clone, "CPU")

        def using(x: Tensor) -> Tensor:
            return torch.ops.tests_bare.copied(x) + 1

        expected = says(
            "The model breaks the graph at", "(return torch.ops.tests_bare.copied(x) + 1)",
            "got: Operator does not support running with fake tensors",
        )  # fmt: skip
        with pytest.raises(GraphBreakError, match=expected):
            tp.compile(using, backend="eager")(torch.ones(3))


def test_shapes_that_do_not_fit_are_refused_in_torchs_own_words() -> None:
    model = tp.compile(nn.Linear(4, 2), backend="eager", dynamic_arg_dims={"input": 0})
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"shapes cannot be multiplied \(3x5 and 4x2\)"):
            model(torch.ones(3, 5))
        assert model(torch.ones(3, 4)).shape == (3, 2)


def test_a_model_on_the_meta_device_given_real_inputs_is_refused_as_it_is_uncompiled() -> None:
    model = nn.Linear(4, 2, device="meta")
    with pytest.raises(RuntimeError) as own:
        model(torch.ones(3, 4))
    tp.compile(model, backend="eager", dynamic_arg_dims={"input": 0})
    with pytest.raises(RuntimeError, match=re.escape(str(own.value))):
        model(torch.ones(3, 4))
    assert model(torch.ones(3, 4, device="meta")).shape == (3, 2)


def test_a_size_that_the_model_fixes() -> None:
    def squared(x: Tensor) -> Tensor:
        return x @ x

    expected = says(
        "Dim 0 of argument 'x' was declared dynamic, but the model fixes its size at 3",
        "expected: code that works for any size of it",
        "test_bad_input.py",
        "to do: declare the other arguments whose size changes with it too, change that line, or remove",
    )
    with pytest.raises(DynamicDimError, match=expected):
        tp.compile(squared, backend="eager")(torch.ones(3, 3))


def test_a_graph_that_holds_weights_is_told_to_be_compiled_as_a_module() -> None:
    graph = torch.fx.symbolic_trace(torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU()))
    x = torch.randn(3, 4)
    expected = says(
        "This graph holds weights of its own",
        "expected: a graph that takes every tensor as an input, as Dynamo's do",
        "got: call_module 0",
        "to do: compile it as the module it is: tp.compile(graph, dynamic_arg_dims={...})",
    )
    with pytest.raises(CompileError, match=expected):
        tp.PiecewiseCompileBackend(backend="eager")(graph, [x])
    want = graph(x)
    compiled = tp.compile(graph, backend="eager", dynamic_arg_dims={"input": 0}, disable_cache=True)
    assert torch.equal(compiled(x), want)


def test_a_size_that_no_dim_can_have() -> None:
    with pytest.raises(ConfigError, match=r"(?s)compile_sizes\[0\].*an integer >= 0 and < 2\*\*63"):
        tp.Config(compile_sizes=[2**63])


# -- calls


def test_calls_that_are_never_alike_run_uncompiled_in_the_end(caplog: pytest.LogCaptureFixture) -> None:
    def scaled(x: Tensor, by: float) -> Tensor:
        return x * by

    model = tp.compile(scaled, backend="eager")
    x = torch.randn(3)
    for by in range(20):
        assert torch.equal(model(x, by + 0.5), x * (by + 0.5))
    assert tp.program_of(model).counters["graphs_captured"] == 16
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    advice = (
        "declare the dims of a tensor that change in dynamic_arg_dims; pass a number that changes as a tensor"
    )
    assert [text.rpartition("<locals>.")[2] for text in warnings] == [
        (
            "scaled is traced for the fourth time because calls differ in one thing (by was 2.5, got 3.5); "
            f"after 16 traces such calls run uncompiled: {advice}"
        ),
        (
            "scaled was traced 16 times and the next call differs again (by was 15.5, got 16.5): "
            f"calls that none of the traces serves run uncompiled from now on; {advice}"
        ),
    ]


def test_a_function_argument_is_told_by_its_code() -> None:
    def applied(x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        return function(x)

    model = tp.compile(applied, backend="eager", dynamic_arg_dims={"x": 0})
    x = torch.randn(3)
    for factor in (2, 3, 2, 3):
        assert torch.equal(model(x, lambda y, factor=factor: y * factor), x * factor)
        assert torch.equal(model(x, lambda y: y + factor), x + factor)  # noqa: B023 - called at once


def test_a_closure_over_a_lambda() -> None:
    factor = 2.0
    scale = lambda y: y * factor  # noqa: E731

    def scaled(x: Tensor) -> Tensor:
        return scale(x)

    model = tp.compile(scaled, backend="eager")
    x = torch.randn(3)
    assert torch.equal(model(x), x * 2)
    scale = lambda y: y + 1  # noqa: E731
    assert torch.equal(model(x), x + 1)


def test_a_program_asked_for_before_there_is_one() -> None:
    with pytest.raises(GuardError, match=says("Nothing has been traced yet", "to do: call the model once")):
        tp.program_of(stack()).warmup([1, 2])
    with pytest.raises(
        ConfigError, match=says("This model is not compiled", "to do: call tp.compile(model, ...) first")
    ):
        tp.program_of(Stack(1))
