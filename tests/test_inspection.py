"""What people and tools see of a compile: folders, torch's trace and logs, log lines."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

import torch_piecewise as tp
from tests.graphs import Stack
from torch_piecewise.dumps import ProgramDump
from torch_piecewise.events import PieceCompileStarted
from torch_piecewise.torch_private.structured_trace import under_compile_of

pytestmark = pytest.mark.usefixtures("no_grad")

SETTINGS: dict[str, Any] = {"backend": "eager", "splitting_ops": ["tests::attention"]}


def ids(count: int = 3) -> torch.Tensor:
    return torch.randint(0, 50, (count,))


def stack(**fields: Any) -> Stack:
    return tp.compile(Stack(2), **{**SETTINGS, **fields})


# -- folders


def test_each_program_gets_a_folder_that_shows_how_it_was_made(tmp_path: Path) -> None:
    with tp.set_model_tag("draft"):
        model = stack(
            debug_dump_path=str(tmp_path / "made"),
            compile_sizes=[2],
            inductor_compile_config={"max_autotune": 1},
        )
    assert torch.equal(model(x := ids()), model.forward(x))
    (folder,) = (tmp_path / "made").iterdir()
    assert folder.name == "draft.Stack.0"
    files = {
        str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*.*") if path.is_file()
    }
    assert set(files) == {
        "computation_graph.py",
        "cut_graph.py",
        *(f"pieces/submod_{number}.py" for number in range(5)),
        "runner.py",
        "transformed_code.py",
        "config.json",
    }
    config = json.loads(files["config.json"])
    assert config["splitting_ops"] == ["tests::attention"]
    assert (config["compile_sizes"], config["inductor_compile_config"]) == ([2], {"max_autotune": 1})
    program = tp.program_of(model).entries[0]
    assert files["runner.py"] == program.program.stitched.source
    assert files["transformed_code.py"] == program.source
    assert "attention" in files["computation_graph.py"]
    assert "submod_4" not in files["computation_graph.py"]
    assert "submod_4" in files["cut_graph.py"]
    assert "attention" in files["pieces/submod_1.py"]
    assert "attention" not in files["pieces/submod_2.py"]


def test_what_the_key_is_made_of_is_there_where_the_program_is_kept(tmp_path: Path) -> None:
    settings = {
        "backend": "tests.kept_compiler.KeptEager",
        "cache_dir": str(tmp_path / "root"),
        "debug_dump_path": str(tmp_path / "dumps"),
    }
    for _ in range(2):
        stack(**settings)(ids())
    cold, warm = sorted((tmp_path / "dumps").iterdir())
    for folder in (cold, warm):
        names = [name for name, _value in json.loads((folder / "ingredients.json").read_text())]
        assert {"tag", "torch", "config"} <= set(names)
        for file in ("runner.py", "transformed_code.py", "config.json"):
            assert (folder / file).read_text() == (cold / file).read_text()
        assert "linear" in (folder / "pieces" / "submod_0.py").read_text()


def test_a_second_trace_gets_a_folder_of_its_own(tmp_path: Path) -> None:
    @tp.compile(backend="eager", debug_dump_path=str(tmp_path))
    def doubled(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    doubled(torch.randn(3))
    doubled(torch.randn(3, dtype=torch.float64))
    names = sorted(path.name for path in tmp_path.iterdir())
    assert [name.rpartition(".")[2] for name in names] == ["0", "1"]
    assert all("doubled" in name and "<" not in name for name in names)


def test_a_program_that_fails_to_compile_leaves_its_folder(tmp_path: Path) -> None:
    model = stack(backend="tests.test_inspection.Failing", debug_dump_path=str(tmp_path))
    with pytest.raises(tp.errors.PieceCompileError):
        model(ids())
    (folder,) = tmp_path.iterdir()
    assert (folder / "pieces" / "submod_0.py").exists()


class Failing:
    """A compiler that cannot compile."""

    name = "failing"

    def fingerprint(self) -> str:
        return "1"

    def compile(self, *_arguments: Any) -> Any:
        raise ValueError("no")

    def load(self, artifact: Any) -> Any:
        raise NotImplementedError


def test_a_path_that_cannot_be_written_is_a_warning_and_the_model_runs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    model = stack(debug_dump_path=str(tmp_path / "file"))
    assert torch.equal(model(x := ids()), model.forward(x))
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    (text,) = [text for text in warnings if "debug_dump_path" in text]
    assert text.startswith(
        f"debug_dump_path: {tmp_path / 'file'} cannot be written and is left out: [Errno 17]"
    )


def test_folders_written_at_once_by_many_threads_are_all_there_and_whole(tmp_path: Path) -> None:
    made: list[ProgramDump] = []

    def write(number: int) -> None:
        files = {f"{letter}.py": str(number) for letter in "abc"}
        made.append(ProgramDump.write(str(tmp_path), "one name", files))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"one_name.{number}" for number in range(8)]
    assert {dump.path for dump in made} == set(tmp_path.iterdir())
    for folder in tmp_path.iterdir():
        assert len({(folder / f"{letter}.py").read_text() for letter in "abc"}) == 1


def test_a_file_that_cannot_be_added_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    dump = ProgramDump.write(str(tmp_path), "name", {"one.py": "1"})
    assert dump.path is not None
    (dump.path / "two.py").mkdir()
    dump.add("two.py", "2")
    dump.add("three.py", "3")
    assert "lacks two.py" in caplog.text
    assert (dump.path / "three.py").read_text() == "3"


def test_torch_compile_gets_a_folder_for_each_graph(tmp_path: Path) -> None:
    torch._dynamo.reset()
    options = {"backend": "eager", "disable_cache": True, "debug_dump_path": str(tmp_path)}
    torch.compile(Stack(1), backend="piecewise", options=options)(ids())
    assert [path.name for path in tmp_path.iterdir()] == ["backbone.graph.0"]


# -- log lines


def test_each_phase_is_one_line_at_info(caplog: pytest.LogCaptureFixture) -> None:
    with tp.set_model_tag("vision"):
        model = stack()
    with caplog.at_level(logging.INFO, "torch_piecewise"):
        model(ids())
    lines = [record.getMessage() for record in caplog.records if record.getMessage().startswith("vision: ")]
    assert [line.split()[1] for line in lines] == ["trace", "split", "fingerprint", "stitch", "compile"]
    assert all(line.endswith(" s") and " took " in line for line in lines)


def test_a_phase_that_fails_says_so(caplog: pytest.LogCaptureFixture) -> None:
    model = stack(backend="tests.test_inspection.Failing")
    with caplog.at_level(logging.INFO, "torch_piecewise"), pytest.raises(tp.errors.PieceCompileError):
        model(ids())
    assert [r.getMessage() for r in caplog.records if "backbone: compile failed after" in r.getMessage()]


# -- torch's trace and logs


def test_each_compile_is_told_when_it_starts() -> None:
    model = stack(compile_ranges_endpoints=[4])
    seen: list[PieceCompileStarted] = []
    tp.program_of(model).bus.add(lambda e: seen.append(e) if isinstance(e, PieceCompileStarted) else None)
    model(ids())
    assert [(event.piece, str(event.range)) for event in seen] == [
        (f"submod_{number}", sizes) for sizes in ("[1, 4]", "[5, inf]") for number in (0, 2, 4)
    ]


class Records(logging.Handler):
    """What torch's structured trace is given."""

    def __init__(self) -> None:
        super().__init__()
        self.artifacts: list[tuple[dict[str, Any], str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        if "artifact" in record.metadata:  # type: ignore[attr-defined]
            self.artifacts.append((record.metadata, record.payload))  # type: ignore[attr-defined]


def test_torchs_structured_trace_gets_what_tlparse_shows() -> None:
    torch._dynamo.reset()
    log, records = logging.getLogger("torch.__trace"), Records()
    log.addHandler(records)
    try:
        model = stack(compile_sizes=[1])
        model(ids())
    finally:
        log.removeHandler(records)
    ours = [one for one in records.artifacts if one[0]["artifact"]["name"].startswith("piecewise_")]
    by_name = {metadata["artifact"]["name"]: payload for metadata, payload in ours}
    program = tp.program_of(model).entries[0].program
    assert json.loads(by_name["piecewise_config"])["compile_sizes"] == [1]
    assert by_name["piecewise_runner"] == program.stitched.source
    assert "submod_2" in by_name["piecewise_cut_graph"]
    starts = [json.loads(payload) for metadata, payload in ours if "start" in metadata["artifact"]["name"]]
    assert starts[0] == {"index": 0, "name": "submod_0", "range": "[1, inf]", "compiler": "eager"}
    assert [(start["index"], start["range"]) for start in starts[3:]] == [
        (0, "[1, 1]"),
        (2, "[1, 1]"),
        (4, "[1, 1]"),
    ]
    # All belong to the compile that Dynamo traced the model in.
    assert len({(m.get("frame_id"), m.get("frame_compile_id")) for m, _payload in ours}) == 1
    assert ours[0][0]["frame_id"] is not None


def test_a_compile_in_progress_keeps_its_own_number() -> None:
    from torch._guards import CompileContext, CompileId, compile_context

    graph = torch.fx.symbolic_trace(torch.nn.ReLU())
    graph.meta["dynamo_compile_id"] = CompileId(frame_id=7, frame_compile_id=0)
    with under_compile_of(graph):
        assert CompileContext.current_compile_id().frame_id == 7
        with under_compile_of(torch.fx.symbolic_trace(torch.nn.ReLU())):
            assert CompileContext.current_compile_id().frame_id == 7
    assert CompileContext.current_compile_id() is None
    with compile_context(CompileContext(CompileId(frame_id=9, frame_compile_id=0))), under_compile_of(graph):
        assert CompileContext.current_compile_id().frame_id == 9


def test_torch_logs_shows_the_graph_before_and_after_it_is_cut(tmp_path: Path) -> None:
    program = (
        "import torch, torch_piecewise as tp\n"
        "from tests.graphs import Stack\n"
        "model = tp.compile(Stack(1), backend='eager', splitting_ops=['tests::attention'])\n"
        "with torch.no_grad(): model(torch.tensor([1, 2, 3]))\n"
    )
    repository = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join((str(repository / "src"), str(repository))),
            "TORCH_LOGS": "graph_code,+torch_piecewise",
            "TORCH_PIECEWISE_CACHE_DIR": str(tmp_path),
        },
        capture_output=True,
        text=True,
        check=True,
    )
    before, after = done.stderr.find("TRACED GRAPH"), done.stderr.find("CUT GRAPH backbone.Stack")
    assert 0 <= before < after
    assert "submod_1" not in done.stderr[before:after]
    assert "submod_1" in done.stderr[after:]
    assert "backbone: compile took" in done.stderr
