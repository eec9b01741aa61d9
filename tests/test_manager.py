"""CompilerManager driven by hand, as an engine of one's own does."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx import GraphModule

import torch_piecewise as tp
from tests.graphs import traced
from torch_piecewise.artifact import Artifact, LiveArtifact
from torch_piecewise.errors import (
    ArgumentError,
    CompileError,
    CompilerError,
    ConfigError,
    MissError,
    PassError,
    PieceCompileError,
)
from torch_piecewise.events import Bus
from torch_piecewise.manager.index import Index, IndexEntry
from torch_piecewise.manager.units import EVERY_SIZE
from torch_piecewise.store import Hit, Miss
from torch_piecewise.tags import ModelTag
from torch_piecewise.testing import RecordingCompiler, memory_store

pytestmark = pytest.mark.usefixtures("no_grad")

SMALL, LARGE = tp.Range(1, 8), tp.Range(9, 64)


def piece(function: Callable[[Tensor], Tensor] = torch.sin) -> GraphModule:
    """The graph of a function of a [n, 4] tensor, n dynamic; its inputs are n and the tensor."""
    x = torch.randn(5, 4)
    torch._dynamo.mark_dynamic(x, 0)
    return traced(lambda x: function(x) + 1, x)


def manager(root: Path | None = None, compiler: Any = None, **fields: Any) -> tp.CompilerManager:
    made = tp.CompilerManager(tp.Config(backend=compiler or RecordingCompiler(), **fields))
    if root is not None:
        made.initialize_cache(root)
    return made


def test_a_piece_is_compiled_for_each_range_once_and_computes_what_it_computed() -> None:
    made = manager()
    graph, x = piece(), torch.randn(3, 4)
    with made.counters.expect(artifacts_compiled=2, artifacts_loaded=2):
        runs = [made.compile(graph, range) for range in (SMALL, LARGE, SMALL)]
    assert runs[0] is runs[2]
    assert torch.equal(runs[0](3, x)[0], torch.sin(x) + 1)


def test_pieces_alike_are_one_and_different_ones_are_not() -> None:
    made = manager()
    one, same, other = made.compile(piece()), made.compile(piece()), made.compile(piece(torch.cos))
    assert one is same
    assert made.counters["artifacts_compiled"] == 2
    assert one is not other


def test_a_graph_without_dynamic_sizes_ignores_the_range() -> None:
    made = manager()
    graph = traced(torch.cos, torch.randn(3))
    assert made.compile(graph, SMALL) is made.compile(graph, LARGE)


def test_a_plain_fx_graph_takes_its_example_values_from_the_call() -> None:
    x = torch.randn(3)
    run = manager().compile(torch.fx.symbolic_trace(torch.nn.ReLU()), example_inputs=[x])
    assert torch.equal(run(x)[0], x.relu())


def test_load_finds_only_what_was_compiled() -> None:
    made, graph = manager(), piece()
    assert made.load(graph, SMALL) is None
    run = made.compile(graph, SMALL)
    assert made.load(graph, SMALL) is run
    assert made.load(graph, LARGE) is None


def test_what_one_manager_keeps_another_loads(tmp_path: Path) -> None:
    x = torch.randn(3, 4)
    first = manager(tmp_path)
    expected = first.compile(piece(), SMALL)(3, x)
    assert first.save_to_file() == 1
    compiler = RecordingCompiler()
    second = manager(tmp_path, compiler)
    run = second.load(piece(), SMALL)
    assert run is not None and torch.equal(run(3, x)[0], expected[0])
    assert compiler.compiled == []
    assert second.compile(piece(), SMALL) is run


@pytest.mark.parametrize(
    "other",
    [
        lambda root: manager(root, RecordingCompiler("2")),
        lambda root: manager(root, RecordingCompiler(name="another")),
        lambda root: manager(root, inductor_compile_config={"max_autotune": True}),
    ],
    ids=["version", "compiler", "options"],
)
def test_what_differs_in_anything_that_counts_is_not_loaded(
    tmp_path: Path, other: Callable[[Path], tp.CompilerManager]
) -> None:
    first = manager(tmp_path)
    first.compile(piece(), SMALL)
    second = other(tmp_path)
    assert second.load(piece(), SMALL) is None
    assert second.compute_hash() != first.compute_hash() == manager().compute_hash()


def test_the_hash_is_the_same_in_every_process() -> None:
    program = (
        "import torch, torch_piecewise as tp; torch.set_grad_enabled(False); "
        f"torch.set_num_threads({torch.get_num_threads()}); "
        "print(tp.CompilerManager(tp.Config(backend='eager')).compute_hash())"
    )
    env = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(sys.path)}
    said = subprocess.run(
        [sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True
    )
    assert said.stdout.strip() == tp.CompilerManager(tp.Config(backend="eager")).compute_hash()


def test_prefixes_keep_parts_of_a_root_apart(tmp_path: Path) -> None:
    first, second = manager(), manager()
    first.initialize_cache(tmp_path, prefix="draft")
    first.compile(piece(), SMALL)
    second.initialize_cache(tmp_path, prefix="main")
    assert second.load(piece(), SMALL) is None
    second.initialize_cache(tmp_path, prefix="draft")
    assert second.load(piece(), SMALL) is not None


def test_without_a_cache_nothing_is_written_and_nothing_found(tmp_path: Path) -> None:
    made = manager()
    made.initialize_cache(tmp_path / "root", disable_cache=True)
    made.compile(piece(), SMALL)
    assert made.save_to_file() == 0
    assert not (tmp_path / "root").exists()


def test_a_closed_cache_is_closed(tmp_path: Path) -> None:
    manager(tmp_path).compile(piece(), SMALL)
    made = manager(tmp_path)
    made.initialize_cache(tmp_path, disable_cache=True)
    assert made.load(piece(), SMALL) is None


def test_it_can_keep_in_a_store_of_ones_own() -> None:
    store = memory_store()
    first, second = manager(), manager()
    first.keep_in(store)
    first.compile(piece(), SMALL)
    second.keep_in(store)
    assert second.load(piece(), SMALL) is not None


def test_threads_compile_a_piece_once() -> None:
    compiler = RecordingCompiler()
    made, graph = manager(compiler=compiler), piece()
    threads = [threading.Thread(target=made.compile, args=(graph, SMALL)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(compiler.compiled) == 1


class Guarding(RecordingCompiler):
    """Relies on an even number of rows."""

    def compile(self, piece: Any, range: Any, options: Any) -> Artifact:
        return dataclasses.replace(super().compile(piece, range, options), guards=("Eq(Mod(size0, 2), 0)",))


def test_whether_a_compiled_piece_serves_a_call_can_be_asked(tmp_path: Path) -> None:
    made, graph = manager(tmp_path, Guarding()), piece()
    assert not made.serves(graph, SMALL, [4, torch.randn(4, 4)])
    made.compile(graph, SMALL)
    served = [n for n in range(1, 20) if made.serves(graph, SMALL, [n, torch.randn(n, 4)])]
    assert served == [2, 4, 6, 8]
    artifact = made.artifact(graph, SMALL)
    assert artifact is not None and (artifact.piece, artifact.range) == ("graph", SMALL)


@pytest.mark.parametrize(
    ("inputs", "got"),
    [
        (lambda x: (5, x, x), "3 inputs"),
        (lambda x: (x, 5), r"input 0 is tensor.*\(Tensor\)"),
        (lambda x: ("5", x), r"input 0 is '5' \(str\)"),
        (lambda x: (5, x[0]), "input 1 has 1 dims"),
    ],
)
def test_other_inputs_than_the_piece_takes_are_told(inputs: Callable[[Tensor], Any], got: str) -> None:
    made = manager()
    made.compile(piece(), SMALL)
    with pytest.raises(ArgumentError, match=f"(?s)These are not inputs of graph.*got: {got}"):
        made.serves(piece(), SMALL, inputs(torch.randn(5, 4)))


# The index


def test_the_index_lists_what_all_managers_kept(tmp_path: Path) -> None:
    first = manager(tmp_path)
    first.compile(piece(), SMALL)
    assert first.index == ()
    first.save_to_file()
    second = manager(tmp_path)
    second.compile(piece(), LARGE)
    assert second.save_to_file() == 2
    third = manager(tmp_path)
    assert [(entry.range, entry.compiler) for entry in third.index] == [
        (SMALL, "recording"),
        (LARGE, "recording"),
    ]
    assert len({entry.fingerprint for entry in third.index}) == 1
    assert third.counters.as_dict() == {"store_hits": 1}


def test_what_was_ready_before_a_root_was_opened_is_kept_in_it(tmp_path: Path) -> None:
    first = manager()
    first.compile(piece(), SMALL)
    first.initialize_cache(tmp_path / "one")
    first.compile(piece(), SMALL)
    assert first.save_to_file() == 1
    for root in ("two", "one"):  # artifacts move on, also those whose files lie in the root before
        second = manager(tmp_path / "one")
        assert second.load(piece(), SMALL) is not None
        second.initialize_cache(tmp_path / root)
        third = manager(tmp_path / root)
        assert third.load(piece(), SMALL) is not None


@pytest.mark.parametrize("compiler", ["eager", None])
def test_the_index_lists_nothing_that_is_not_kept(tmp_path: Path, compiler: Any) -> None:
    made = manager(tmp_path, compiler)
    made.compile(piece(lambda x: torch.sin(x)), SMALL) if compiler else None
    assert made.save_to_file() == 0
    made.compile(piece(), SMALL)
    made.initialize_cache(tmp_path, disable_cache=True)
    assert made.save_to_file() == 0


def test_a_miss_says_what_there_is_instead(tmp_path: Path) -> None:
    first = manager(tmp_path)
    first.compile(piece(), SMALL)
    first.save_to_file()
    second = manager(tmp_path)
    second.load(piece(), LARGE)
    second.load(piece(torch.cos), SMALL)
    here, there = second.misses
    (listed,) = first.index
    assert here == (
        f"graph {listed.fingerprint[:8]} [9, 64]: the index has this piece for [1, 8], not for [9, 64]"
    )
    assert re.fullmatch(r"graph [0-9a-f]{8} \[1, 8\]: the index has 1 artifacts, none of this piece", there)


def cut_pieces() -> list[tp.SplitItem]:
    graph = traced(lambda x: (torch.relu(x.sin()) + 1).cos(), torch.randn(5))
    items = [item for item in tp.split_graph(graph, ["torch.relu"])[1] if not item.is_splitting_graph]
    assert [item.submod_name for item in items] == ["submod_0", "submod_2"]
    return items


@pytest.mark.parametrize("given", [lambda item: item, lambda item: item.graph], ids=["item", "graph"])
def test_a_miss_names_the_piece_once(tmp_path: Path, given: Callable[[tp.SplitItem], Any]) -> None:
    made = manager(tmp_path)
    for item in cut_pieces():
        assert made.load(given(item)) is None
        made.compile(given(item))
        made.compile(given(item))
    reasons = [miss.partition(": no entry")[0] for miss in made.misses]
    assert reasons == ["the index: there is no index", "submod_0 [0, inf]", "submod_2 [0, inf]"]
    made.save_to_file()
    assert [entry.piece for entry in made.index] == ["submod_0", "submod_2"]


def test_without_a_cache_the_misses_say_so(tmp_path: Path) -> None:
    (item, _) = cut_pieces()
    made = manager()
    made.load(item)
    made.initialize_cache(tmp_path, disable_cache=True)
    made.compile(item)
    assert made.misses == (
        "submod_0 [0, inf]: nothing is kept before initialize_cache",
        "submod_0 [0, inf]: nothing is looked up: disable_cache",
    )
    assert made.counters["store_misses"] == 0


def test_only_the_last_misses_are_remembered() -> None:
    made, graph = manager(), piece()
    for start in range(1, 300):
        made.load(graph, tp.Range(start, 300))
    assert len(made.misses) == 256
    assert made.misses[-1].endswith("[299, 300]: nothing is kept before initialize_cache")


@pytest.mark.parametrize(
    ("given", "shown", "hint"),
    [
        ((1, 64), "(1, 64) (tuple)", "write tp.Range(1, 64)"),
        ([1, 64], "[1, 64] (list)", "write tp.Range(1, 64)"),
        (64, "64 (int)", "write tp.Range(64, 64)"),
        ("1-64", "'1-64' (str)", "write tp.Range(1, 64), or leave it out to serve every size"),
    ],
)
@pytest.mark.parametrize("verb", ["load", "compile", "artifact"])
def test_sizes_that_are_no_range_are_refused_before_anything_is_compiled(
    verb: str, given: Any, shown: str, hint: str
) -> None:
    made = manager()
    with pytest.raises(ArgumentError) as caught:
        getattr(made, verb)(piece(), given)
    assert isinstance(caught.value, TypeError)
    assert str(caught.value) == (
        "The sizes to compile for are not given as a Range\n"
        f"  expected: torch_piecewise.Range\n  got: {shown}\n  to do: {hint}"
    )
    assert made.counters.as_dict() == {}


def test_artifacts_are_found_where_nobody_wrote_an_index(tmp_path: Path) -> None:
    manager(tmp_path).compile(piece(), SMALL)
    second = manager(tmp_path)
    assert second.misses[0].startswith("the index: there is no index: ")
    assert second.load(piece(), SMALL) is not None


def spoil(root: Path, change: Callable[[bytes], bytes]) -> None:
    for path in root.rglob("*"):
        if path.is_file() and path.stat().st_size:
            path.write_bytes(change(path.read_bytes()))


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data[: len(data) // 2],
        lambda data: b"",
        lambda data: b"\x00" * len(data),
        lambda data: data.replace(b'"format":1', b'"format":0'),
        lambda data: b"[__import__('os').abort()]",
        lambda data: b"{}",
    ],
    ids=["torn", "empty", "zeros", "old format", "code", "mistyped"],
)
def test_a_spoilt_root_is_a_miss_with_a_reason_and_is_mended(
    tmp_path: Path, change: Callable[[bytes], bytes]
) -> None:
    first = manager(tmp_path)
    first.compile(piece(), SMALL)
    first.save_to_file()
    spoil(tmp_path, change)
    second = manager(tmp_path)
    assert second.index == ()
    assert second.load(piece(), SMALL) is None
    assert len(second.misses) == 2 and all(len(reason) > 20 for reason in second.misses)
    second.compile(piece(), SMALL)
    assert second.save_to_file() == 1
    assert manager(tmp_path).load(piece(), SMALL) is not None


ROW = {"piece": "submod_0", "fingerprint": "f", "range": [1, 8], "compiler": "eager"}


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ({"format": 0, "artifacts": []}, "the index has format 0, this version reads 1"),
        ({"artifacts": []}, "the index is mistyped (KeyError: 'format')"),
        ([], "the index is mistyped (TypeError: list indices must be integers or slices, not str)"),
        ({"format": 1, "artifacts": {}}, "the index is mistyped (TypeError: 'artifacts' is no list)"),
        (
            {"format": 1, "artifacts": [{**ROW, "piece": 3}]},
            (
                "the index is mistyped (TypeError: an artifact of the index is mistyped: {'piece': 3, "
                "'fingerprint': 'f', 'range': [1, 8], 'compiler': 'eager'})"
            ),
        ),
    ],
)
def test_an_index_of_another_kind_is_a_miss_that_says_so(document: Any, reason: str) -> None:
    found = Index.of_text(json.dumps(document).encode())
    assert isinstance(found, Miss) and found.reason == reason


@pytest.mark.parametrize("range", [[8, 1], [1], [1, 8, 9], ["1", 8], [True, 8], None, [-1, 4]])
def test_an_index_with_a_range_that_is_none_is_a_miss(range: Any) -> None:
    text = json.dumps({"format": 1, "artifacts": [{**ROW, "range": range}]})
    assert isinstance(Index.of_text(text.encode()), Miss)


def test_an_index_round_trips() -> None:
    index = Index().and_(
        [IndexEntry("submod_2", "f", SMALL, "eager"), IndexEntry("submod_0", "g", EVERY_SIZE, "e")]
    )
    assert Index.of_text(index.as_text().encode()) == Hit(index)
    assert [entry.piece for entry in index.entries] == ["submod_0", "submod_2"]


# Nothing may be compiled


def test_where_a_miss_is_an_error_what_is_kept_loads_and_the_rest_is_told(tmp_path: Path) -> None:
    manager(tmp_path).compile(piece(), SMALL)
    strict = manager(tmp_path, on_miss="error")
    assert strict.compile(piece(), SMALL) is strict.load(piece(), SMALL)
    with pytest.raises(MissError) as caught:
        strict.compile(piece(), LARGE)
    assert str(caught.value).startswith(
        "on_miss='error' and the store lacks 1 of the compiled pieces\n"
        "  expected: pieces kept by an earlier start\n"
        "  got: graph "
    )
    assert "[9, 64]: no entry" in str(caught.value)
    assert str(caught.value).endswith("\n  to do: run once with on_miss='compile' on the same root")
    assert strict.counters["compiles_started"] == 0


@pytest.mark.parametrize("torn", [lambda data: data[:10], lambda data: b""], ids=["truncated", "empty"])
def test_a_torn_piece_is_told_and_set_aside_where_a_miss_is_an_error(
    tmp_path: Path, torn: Callable[[bytes], bytes]
) -> None:
    manager(tmp_path).compile(piece(), SMALL)
    (blob,) = (path for path in (tmp_path / "blobs").rglob("*") if path.is_file())
    blob.write_bytes(torn(blob.read_bytes()))
    with pytest.raises(MissError, match=r"has lost its blob 'payload': blob .* was set aside"):
        manager(tmp_path, on_miss="error").compile(piece(), SMALL)
    assert not blob.exists()
    assert [path.name.split(".")[0] for path in (tmp_path / "quarantine").iterdir()] == ["blob"]


# Context and time


def test_the_pass_context_is_in_force_around_each_compile_and_on_request() -> None:
    compiler = RecordingCompiler()
    made = manager(compiler=compiler)
    made.compile(piece(), SMALL)
    assert compiler.calls[0].context_range == SMALL
    with made.compile_context(LARGE):
        assert tp.get_pass_context().compile_range == LARGE
    with pytest.raises(PassError):
        tp.get_pass_context()
    with pytest.raises(ConfigError, match="pass_context was not given a Range"):
        made.compile_context((1, 8)).__enter__()  # type: ignore[arg-type]


def test_time_runs_from_the_first_piece_to_the_last() -> None:
    made = manager()
    assert made.timing.seconds == 0.0 and made.timing.first is None
    made.compile(piece(), SMALL)
    first = made.timing
    made.compile(piece(), LARGE)
    second = made.timing
    made.compile(piece(), LARGE)
    assert made.timing == second
    assert second.first == first.first
    assert 0 < first.seconds < second.seconds
    assert 0 < first.compiling < second.compiling <= second.seconds


def test_an_encoders_time_says_that_it_is_one() -> None:
    encoder = tp.CompilerManager(tp.Config(backend="eager"), Bus(tag=ModelTag("vision", is_encoder=True)))
    assert encoder.timing.is_encoder
    assert not manager().timing.is_encoder


# Wrong use


class Bare:
    """A compiler; subclasses break one verb each."""

    name = "bare"

    def fingerprint(self) -> str:
        return "1"

    def compile(self, piece: Any, range: Any, options: Any) -> Any:
        return LiveArtifact(self.name, piece.name, range, runnable=piece.graph.forward)

    def load(self, artifact: Any) -> Any:
        return artifact.runnable


class ReturnsNothing(Bare):
    def compile(self, piece: Any, range: Any, options: Any) -> Any:
        return None


class ReturnsAnothers(Bare):
    def compile(self, piece: Any, range: Any, options: Any) -> Any:
        return Artifact("inductor", piece.name, range, b"payload")


class LoadsNothing(Bare):
    def load(self, artifact: Any) -> Any:
        return None


@pytest.mark.parametrize(
    ("compiler", "message"),
    [
        (
            ReturnsNothing(),
            (
                "Compiler 'bare' returned no artifact for graph\n"
                "  expected: an Artifact\n"
                "  got: None\n"
                "  to do: Compiler.compile(piece, range, options) has to return an Artifact"
            ),
        ),
        (
            ReturnsAnothers(),
            (
                "Compiler 'bare' was handed an artifact it did not make for graph\n"
                "  expected: an artifact of 'bare'\n"
                "  got: Artifact of 'inductor'\n"
                "  to do: Artifact.compiler has to be the name of the compiler that made it and loads it"
            ),
        ),
        (
            LoadsNothing(),
            (
                "Compiler 'bare' loaded nothing that can be called for graph\n"
                "  expected: a callable\n"
                "  got: None\n"
                "  to do: Compiler.load(artifact) has to return a function of the piece's inputs"
            ),
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_compiler_that_breaks_its_protocol_is_told_how(compiler: Bare, message: str) -> None:
    with pytest.raises(CompilerError) as caught:
        manager(compiler=compiler).compile(piece())
    assert str(caught.value) == message


class LosesOutputs(Bare):
    def load(self, artifact: Any) -> Any:
        return lambda *inputs: ()


def test_a_compiled_piece_that_returns_too_few_outputs_is_named() -> None:
    settings: Any = {"dynamic_arg_dims": {}, "splitting_ops": [], "disable_cache": True}
    call = tp.compile(lambda x: x * 2, backend=LosesOutputs(), **settings)
    with pytest.raises(CompilerError) as caught:
        call(torch.randn(1, 4))
    assert str(caught.value) == (
        "What compiler 'bare' made of submod_0 returned 0 outputs\n"
        "  expected: 1, as many as the piece's graph returns, in its order\n"
        "  got: 0\n"
        "  to do: the function that Compiler.load(artifact) returns has to return every output of the piece"
    )


class NumbersItself(Bare):
    def fingerprint(self) -> Any:
        return 3


@pytest.mark.parametrize("verb", ["compute_hash", "initialize_cache"])
def test_a_fingerprint_that_is_no_text_names_the_compiler(tmp_path: Path, verb: str) -> None:
    made = manager(compiler=NumbersItself())
    with pytest.raises(CompilerError) as caught:
        getattr(made, verb)(*([tmp_path] if verb == "initialize_cache" else []))
    assert str(caught.value) == (
        "Compiler 'bare' has a fingerprint that is no text\n"
        "  expected: fingerprint() returns a str that changes whenever the same piece could compile to "
        "other code\n"
        "  got: 3 (int)\n"
        "  to do: return a text with the versions and flags that the code depends on, such as 'mine 1.2'"
    )
    call = tp.compile(torch.nn.Linear(4, 4), backend=NumbersItself(), cache_dir=str(tmp_path))
    with pytest.raises(CompilerError, match="has a fingerprint that is no text"):
        call(torch.randn(1, 4))


class ReturnsText(Bare):
    def __init__(self, **fields: Any) -> None:
        self.fields = {"payload": b"", **fields}

    def compile(self, piece: Any, range: Any, options: Any) -> Any:
        return Artifact(self.name, piece.name, range, **self.fields)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"payload": "text"}, "payload of type bytes"),
        ({"files": {"a.so": "text"}}, "files['a.so'] of type bytes or pathlib.Path"),
    ],
)
def test_an_artifact_of_other_things_than_bytes_names_the_compiler(fields: Any, expected: str) -> None:
    with pytest.raises(CompilerError) as caught:
        manager(compiler=ReturnsText(**fields)).compile(piece())
    assert str(caught.value) == (
        "Compiler 'bare' returned an artifact for graph that cannot be kept\n"
        f"  expected: {expected}\n"
        "  got: str\n"
        "  to do: encode it in Compiler.compile, or return a LiveArtifact(..., runnable=function), which is "
        "not kept"
    )


class WantsAnArgument(Bare):
    def __init__(self, level: int) -> None:
        self.level = level


def test_a_compiler_class_that_wants_an_argument_is_told_so() -> None:
    for given in (WantsAnArgument, f"{__name__}.WantsAnArgument"):
        with pytest.raises(ConfigError) as caught:
            tp.make_compiler(given)
        assert str(caught.value) == (
            "The compiler class WantsAnArgument cannot be made without arguments\n"
            "  expected: a class whose __init__ needs none, or an instance of it\n"
            "  got: TypeError: WantsAnArgument.__init__() missing 1 required positional argument: 'level'\n"
            "  to do: give its arguments default values, or give backend=WantsAnArgument(...)"
        )


def test_a_handle_of_another_compiler_is_refused() -> None:
    artifact = Artifact("recording", "submod_0", SMALL, b"payload")
    for name in ("inductor", "eager"):
        with pytest.raises(CompilerError, match=f"Compiler '{name}' was handed an artifact it did not make"):
            tp.make_compiler(name).load(artifact)


def test_a_piece_that_fails_names_itself_and_its_range() -> None:
    made = manager(compiler=RecordingCompiler(failing=["graph"]))
    with pytest.raises(PieceCompileError, match=r"graph failed to compile for sizes \[1, 8\] with"):
        made.compile(piece(), SMALL)


def test_a_piece_that_fails_runs_eagerly_where_that_is_wanted() -> None:
    made = manager(compiler=RecordingCompiler(failing=["graph"]), on_piece_error="eager")
    x = torch.randn(3, 4)
    assert torch.equal(made.compile(piece(), SMALL)(3, x)[0], torch.sin(x) + 1)


def test_what_is_no_piece_is_refused() -> None:
    with pytest.raises(CompileError, match="This is not a piece"):
        manager().compile(torch.sin)  # type: ignore[arg-type]
    graph = torch.fx.Graph()
    graph.output((graph.placeholder("x"),))
    with pytest.raises(CompileError, match="it computes nothing"):
        manager().load(GraphModule(torch.nn.Module(), graph), example_inputs=[torch.randn(3)])


def test_a_graph_without_example_values_is_asked_for_some() -> None:
    with pytest.raises(CompileError) as caught:
        manager().compile(torch.fx.symbolic_trace(torch.nn.ReLU()))
    assert str(caught.value) == (
        "This graph does not say what its inputs are\n"
        "  expected: example_inputs, one for each of input\n"
        "  got: 0 of them\n"
        "  to do: give tensors like those it will be called with; fake ones keep sizes dynamic"
    )


@pytest.mark.inductor
def test_a_piece_that_records_gradients_has_them_and_is_not_kept(tmp_path: Path) -> None:
    with torch.enable_grad():
        made = tp.CompilerManager(tp.Config(backend="inductor"))
        made.initialize_cache(tmp_path)
        x = torch.randn(5, requires_grad=True)
        run = made.compile(traced(lambda x: torch.sin(x) + 1, x))
        run(x)[0].sum().backward()
    torch.testing.assert_close(x.grad, torch.cos(x.detach()))
    assert made.save_to_file() == 0
