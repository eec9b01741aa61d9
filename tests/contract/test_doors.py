"""The public names as people who know the contract alone use them."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import io
import pickle
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torch_piecewise as tp
from torch_piecewise.compilers.base import Ambient, CompileOptions
from torch_piecewise.errors import ConfigError, MissError

SETTINGS: dict[str, Any] = {"backend": "eager", "splitting_ops": ["aten::relu"], "disable_cache": True}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.last = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(torch.relu(self.first(x)))
        return y


SIGNATURES = {
    "compile": ["model_or_fn", "config", "tag", "fields"],
    "bake": ["model", "example_inputs", "path", "fields"],
    "load": ["path", "model"],
    "split_graph": ["graph", "splitting_ops"],
    "SplitItem": ["submod_name", "graph_id", "is_splitting_graph", "graph"],
    "Range": ["start", "end"],
    "CUDAGraphWrapper": ["runnable", "runtime_mode", "options", "pool"],
    "BatchDescriptor": ["num_tokens", "num_reqs", "uniform", "has_lora", "num_active_loras"],
    "make_copy_and_call": ["sym_tensor_indices", "input_buffers", "fn"],
    "set_model_tag": ["tag", "is_encoder"],
    "set_on_compilation_complete": ["callback"],
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_parameters_have_the_contracts_names_in_the_contracts_order(name: str) -> None:
    wanted = SIGNATURES[name]
    parameters = inspect.signature(getattr(tp, name)).parameters
    assert [parameter for parameter in parameters if parameter in wanted] == wanted
    in_order = [one.name for one in parameters.values() if one.kind is one.POSITIONAL_OR_KEYWORD]
    assert in_order == wanted[: len(in_order)]


def test_the_compiler_protocol_and_the_managers_verbs_have_the_contracts_parameters() -> None:
    def parameters(function: Any) -> list[str]:
        return list(inspect.signature(function).parameters)

    compiler = tp.make_compiler("inductor")
    assert parameters(compiler.compile)[:3] == ["piece", "range", "options"]
    assert len(parameters(compiler.load)) == 1
    assert parameters(compiler.fingerprint) == []
    manager = tp.CompilerManager(tp.Config(backend="eager"))
    assert parameters(manager.initialize_cache) == ["cache_dir", "disable_cache", "prefix"]
    assert parameters(manager.compile_context) == ["range"]
    assert parameters(manager.compute_hash) == parameters(manager.save_to_file) == []


def test_the_version_is_the_distributions() -> None:
    assert tp.__version__ == version("torch-piecewise")


def test_a_range_is_a_sortable_hashable_value() -> None:
    ranges = [tp.Range(5, 9), tp.Range(1, 4), tp.Range(1, 2)]
    assert [str(one) for one in sorted(ranges)] == ["[1, 2]", "[1, 4]", "[5, 9]"]
    assert {tp.Range(1, 2), tp.Range(start=1, end=2)} == {tp.Range(1, 2)}
    assert pickle.loads(pickle.dumps(ranges)) == ranges
    assert [field.name for field in dataclasses.fields(tp.Range)] == ["start", "end"]
    with pytest.raises(ValueError, match="5"):
        tp.Range(5, 4)


@pytest.mark.parametrize("backend", ["inductor", "aot_inductor", "eager", "inductor_memory"])
def test_a_compiler_is_made_of_its_name_or_of_settings(backend: str) -> None:
    by_name, by_settings = tp.make_compiler(backend), tp.make_compiler(tp.Config(backend=backend))
    assert type(by_name) is type(by_settings)
    assert by_name.fingerprint() == by_settings.fingerprint()


KEPT: dict[bytes, Any] = {}


class InMemory:
    """The protocol and nothing else."""

    name = "in-memory"

    def fingerprint(self) -> str:
        return "1"

    def compile(self, piece: Any, range: tp.Range, options: Any) -> tp.Artifact:
        KEPT[piece.name.encode()] = piece.graph
        return tp.Artifact(self.name, piece.name, range, piece.name.encode())

    def load(self, artifact: tp.Artifact) -> Any:
        return KEPT[artifact.payload]


@pytest.mark.parametrize("backend", [f"{__name__}.InMemory", InMemory()])
def test_a_compiler_of_ones_own_needs_the_protocol_alone(backend: Any) -> None:
    model, x = Net(), torch.randn(3, 4)
    want = model(x)
    tp.compile(model, **{**SETTINGS, "backend": backend})
    assert torch.equal(model(x), want)


class HandsBackThePiece(InMemory):
    """The shortest compiler there can be."""

    def compile(self, piece: Any, range: tp.Range, options: Any) -> tp.Artifact:
        KEPT[piece.name.encode()] = piece
        return tp.Artifact(self.name, piece.name, range, piece.name.encode())


def test_a_piece_runs_as_it_was_traced() -> None:
    model, x = Net(), torch.randn(3, 4)
    want = model(x)
    tp.compile(model, **{**SETTINGS, "backend": HandsBackThePiece()})
    assert torch.equal(model(x), want)


@pytest.mark.parametrize("backend", ["inductor", "aot_inductor", "eager", "inductor_memory"])
def test_a_graph_handed_to_a_compiler_is_told_who_describes_it(backend: str) -> None:
    graph = torch.fx.symbolic_trace(Net())
    options = CompileOptions(ambient=Ambient.now())
    by_hand = "tp.CompilerManager(tp.Config(backend=...)).compile(graph, range, example_inputs)"
    with pytest.raises(TypeError) as refused:
        tp.make_compiler(backend).compile(graph, tp.Range(1, 8), options)  # type: ignore[arg-type]
    assert str(refused.value) == (
        "A compiler takes pieces that are described\n"
        "  expected: torch_piecewise.piece.Piece: a graph with its inputs' dtypes and sizes\n"
        "  got: a Net\n"
        f"  to do: {by_hand} describes it"
    )


def test_every_way_to_hand_over_a_model_gives_the_same() -> None:
    x = torch.randn(3, 4)
    model = Net()
    want = model(x)
    keys = list(model.state_dict())
    assert tp.compile(model, config=tp.Config(backend="eager"), splitting_ops=["aten::relu"]) is model
    assert torch.equal(model(x), want)
    assert type(model) is Net
    assert list(model.state_dict()) == keys
    tp.program_of(model).restore()
    backend = tp.PiecewiseCompileBackend(tp.Config(**SETTINGS))
    for compiled in (
        tp.compile(**SETTINGS)(model),
        tp.compile(model.forward, **SETTINGS),
        torch.compile(Net.forward, backend="piecewise", options=SETTINGS).__get__(model),
        torch.compile(Net.forward, backend=backend).__get__(model),
    ):
        assert torch.equal(compiled(x), want)


def test_a_mapping_for_config_is_told_where_settings_go() -> None:
    for door, call in (
        ("tp.compile", lambda given: tp.compile(Net(), config=given)),
        ("tp.PiecewiseCompileBackend", tp.PiecewiseCompileBackend),
    ):
        with pytest.raises(ConfigError) as refused:
            call({"backend": "eager"})  # type: ignore[no-untyped-call, unused-ignore]
        assert str(refused.value) == (
            f"config of {door} is no Config\n  expected: tp.Config(...) or None\n  got: dict\n"
            f"  to do: give settings as keyword arguments: {door}(..., backend='eager')"
        )


def test_every_door_reads_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_PIECEWISE_COMPILE_SIZES", "2,1")
    settings = tp.Config(backend="eager")
    assert settings.compile_sizes == ()
    assert tp.program_of(tp.compile(Net(), config=settings)).config.compile_sizes == (1, 2)
    assert tp.PiecewiseCompileBackend(settings).config.compile_sizes == (1, 2)
    assert tp.PiecewiseCompileBackend(settings, compile_sizes=[4]).config.compile_sizes == (4,)


@pytest.mark.parametrize("field", ["compile_sizes", "compile_ranges_endpoints", "pass_config"])
def test_none_is_nothing_where_a_field_holds_several(field: str) -> None:
    assert getattr(tp.Config(**{field: None}), field) == getattr(tp.Config(), field)


@pytest.mark.parametrize("sizes", [4, [4], (4,), range(4, 5), {4}])
def test_sizes_can_be_made_ready_in_any_form(sizes: Any, no_grad: None) -> None:
    recorder = "torch_piecewise.testing.GraphRecorder"
    model = tp.compile(Net(), cudagraph_mode="piecewise", static_graph_class=recorder, **SETTINGS)
    model(torch.randn(3, 4))
    report = tp.program_of(model).warmup(sizes)
    assert report is not None
    assert report.captured == 1


@pytest.mark.parametrize("kind", [Tensor, torch.FloatTensor, torch.FloatTensor | None, nn.Parameter])
def test_every_class_of_tensors_is_an_annotation_of_one(kind: Any) -> None:
    def run(x: Any, by: int = 2) -> Any:
        return torch.relu(x) * by

    run.__annotations__["x"] = kind
    settings = {**SETTINGS, "compile_ranges_endpoints": [4]}
    compiled = tp.compile(run, **settings)
    compiled(torch.randn(3, 4))
    with tp.program_of(compiled).counters.expect(graphs_captured=0):
        x = torch.randn(7, 4)
        assert torch.equal(compiled(x), run(x))


def through_bytes(model: nn.Module) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    loaded: nn.Module = torch.load(buffer, weights_only=False)
    return loaded


@pytest.mark.parametrize("copied", [copy.deepcopy, through_bytes, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_of_a_compiled_model_is_a_model_of_its_own(copied: Any) -> None:
    model, x = tp.compile(Net(), **SETTINGS), torch.randn(3, 4)
    want = model(x)
    other = copied(model)
    assert torch.equal(other(x), want)
    with torch.no_grad():
        other.first.weight.mul_(3)
    assert torch.equal(model(x), want)
    assert not torch.equal(other(x), want)


def test_why_nothing_is_kept_is_said_where_a_miss_is_an_error(tmp_path: Path) -> None:
    settings = {**SETTINGS, "disable_cache": False, "cache_dir": tmp_path}
    model = tp.compile(Net(), on_miss="error", **settings)
    with pytest.raises(MissError) as refused:
        model(torch.randn(3, 4))
    assert str(refused.value) == (
        "on_miss='error' and the store has no program for this call\n"
        "  expected: a program kept by an earlier start\n"
        "  got: what backend 'eager' makes cannot be kept\n"
        "  to do: mend that first: no start of it is kept"
    )
