from __future__ import annotations

import dataclasses
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import torch_piecewise as tp
from tests.graphs import traced
from torch_piecewise.artifact import Artifact
from torch_piecewise.errors import ArgumentError, BundleError, CompilerError, UntrustedError
from torch_piecewise.saved_artifacts import load_artifact, save_artifact
from torch_piecewise.testing import RecordingCompiler

pytestmark = pytest.mark.usefixtures("no_grad")

FILES = {"a": b"one", "b": b""}
ARTIFACT = Artifact("recording", "submod_2", tp.Range(1, 8), b"payload", ("size0 > 1",), FILES)


def test_a_binary_file_holds_all_of_an_artifact(tmp_path: Path) -> None:
    save_artifact(ARTIFACT, tmp_path / "piece")
    assert load_artifact(tmp_path / "piece") == ARTIFACT
    assert [path.name for path in tmp_path.iterdir()] == ["piece"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda data: data[:-1], "got: torn or altered bytes"),
        (lambda data: data[:40], "got: torn or altered bytes"),
        (lambda data: data.replace(b"payload", b"poisons"), "got: torn or altered bytes"),
        (lambda data: data.replace(b"artifact 1", b"artifact 0"), "got: another kind or format"),
        (lambda data: b"", "got: another kind or format"),
    ],
    ids=["torn", "torn head", "altered", "other format", "empty"],
)
def test_a_binary_file_is_taken_as_it_was_written_or_not_at_all(
    tmp_path: Path, change: Callable[[bytes], bytes], said: str
) -> None:
    file = tmp_path / "piece"
    save_artifact(ARTIFACT, file)
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(BundleError, match=said):
        load_artifact(file)


def test_what_others_can_write_to_is_refused(tmp_path: Path) -> None:
    save_artifact(ARTIFACT, tmp_path / "piece")
    (tmp_path / "piece").chmod(0o666)
    with pytest.raises(UntrustedError) as caught:
        load_artifact(tmp_path / "piece")
    assert str(caught.value) == (
        f"The saved artifact at {tmp_path / 'piece'} is not trusted: "
        "others can change what would be run from it\n"
        "  expected: writable by its owner only\n"
        f"  got: mode 0666, group {(tmp_path / 'piece').stat().st_gid}\n"
        f"  to do: chmod -R go-w {tmp_path / 'piece'}  (after a look inside)"
    )


class Unpacking(RecordingCompiler):
    """Writes its payload down as a file of its own."""

    def unpack(self, artifact: Artifact) -> dict[str, bytes]:
        return {"code/graph.bin": artifact.payload}

    def pack(self, artifact: Artifact, files: dict[str, bytes]) -> Artifact:
        return dataclasses.replace(artifact, payload=files["code/graph.bin"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_artifact(ARTIFACT, tmp_path / "piece", "unpacked", compiler=Unpacking())
    return tmp_path / "piece"


def load_folder(folder: Path) -> Artifact:
    return load_artifact(folder, "unpacked", compiler=Unpacking())


def test_a_compiler_of_ones_own_unpacks_and_packs(folder: Path) -> None:
    assert load_folder(folder).payload == b"payload"
    (folder / "code" / "graph.bin").write_bytes(b"edited")
    edited = load_folder(folder)
    assert (edited.payload, edited.meta["edited"]) == (b"edited", ["code/graph.bin"])
    assert (edited.piece, edited.range, edited.guards) == ("submod_2", tp.Range(1, 8), ("size0 > 1",))


def test_a_compiler_that_its_name_does_not_tell_is_asked_for(folder: Path, tmp_path: Path) -> None:
    message = (
        "The compiler of this artifact is not known by its name 'recording'\n"
        "  expected: a compiler of this library, or one whose name is the dotted name of its class\n"
        "  got: 'recording', which has no dot\n"
        "  to do: say who it is: compiler=MyCompiler()"
    )
    with pytest.raises(CompilerError) as caught:
        load_artifact(folder, "unpacked")
    assert str(caught.value) == message
    with pytest.raises(CompilerError) as caught:
        save_artifact(ARTIFACT, tmp_path / "other", "unpacked")
    assert str(caught.value) == message


def test_a_folder_that_others_can_write_to_is_refused_as_what_it_is(folder: Path) -> None:
    folder.chmod(0o777)
    with pytest.raises(UntrustedError, match=r"^The saved artifact at .*piece is not trusted"):
        load_folder(folder)
    folder.chmod(0o755)
    (folder / "code" / "graph.bin").chmod(0o666)
    with pytest.raises(
        UntrustedError, match=r"^The file of a saved artifact at .*graph.bin is not trusted"
    ) as caught:
        load_folder(folder)
    assert "CACHE" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "format", "said"),
    [
        (
            "nowhere",
            "binary",
            (
                "  expected: a file that save_artifact(artifact, path, 'binary') wrote\n"
                "  got: nothing of that name\n"
                "  to do: save it anew: save_artifact(manager.artifact(piece, range), path)"
            ),
        ),
        (
            "piece",
            "binary",
            (
                "  expected: a file that save_artifact(artifact, path, 'binary') wrote\n"
                "  got: a folder\n"
                "  to do: if it was saved so, load_artifact(path, 'unpacked')"
            ),
        ),
        (
            "piece/artifact.json",
            "unpacked",
            (
                "  expected: a folder that save_artifact(artifact, path, 'unpacked') wrote\n"
                "  got: a file\n"
                "  to do: if it was saved so, load_artifact(path, 'binary')"
            ),
        ),
        (
            "piece/code",
            "unpacked",
            (
                "  expected: a folder that save_artifact(artifact, path, 'unpacked') wrote\n"
                "  got: no artifact.json in it\n"
                "  to do: name the folder itself, not one above or below"
            ),
        ),
    ],
)
def test_what_is_no_saved_artifact_is_told(folder: Path, path: str, format: Any, said: str) -> None:
    place = folder.parent / path
    with pytest.raises(BundleError) as caught:
        load_artifact(place, format, compiler=Unpacking())
    assert str(caught.value) == f"{place} holds no artifact that can be used\n{said}"


def test_a_folder_that_lacks_a_file_names_it(folder: Path) -> None:
    (folder / "code" / "graph.bin").unlink()
    with pytest.raises(BundleError) as caught:
        load_folder(folder)
    assert str(caught.value) == (
        f"{folder} holds no artifact that can be used\n"
        "  expected: the file code/graph.bin\n"
        "  got: no such file\n"
        "  to do: put it back, or save the artifact anew: artifact.json lists what it is made of"
    )


def test_a_live_artifact_cannot_be_written(tmp_path: Path) -> None:
    manager = tp.CompilerManager(tp.Config(backend="eager"))
    graph = traced(torch.sin, torch.randn(3))
    manager.compile(graph)
    artifact = manager.artifact(graph)
    assert artifact is not None
    with pytest.raises(CompilerError) as caught:
        save_artifact(artifact, tmp_path / "piece")
    assert str(caught.value) == (
        "This artifact of 'eager' cannot be written down\n"
        "  expected: an artifact made of bytes\n"
        "  got: a LiveArtifact, which lives with the process\n"
        "  to do: a piece that records gradients is compiled in memory: compile it under torch.no_grad(), "
        "with a compiler that keeps its artifacts (backend='inductor')"
    )


def test_what_is_no_artifact_is_refused(tmp_path: Path) -> None:
    for given in (None, "piece"):
        with pytest.raises(ArgumentError) as caught:
            save_artifact(given, tmp_path / "piece")  # type: ignore[arg-type]
        assert str(caught.value) == (
            "save_artifact was given something that is no artifact\n"
            "  expected: a torch_piecewise.artifact.Artifact\n"
            f"  got: {given!r} ({type(given).__name__})\n"
            "  to do: manager.artifact(piece, range) gives it; None there means that nothing is "
            "compiled or kept"
        )


def test_an_edit_that_is_no_python_names_file_and_line(tmp_path: Path) -> None:
    payload = pickle.dumps({"whole": None, "source": "x = 1\n", "unpacked": True})
    folder = tmp_path / "piece"
    save_artifact(Artifact("inductor", "submod_0", tp.Range(1, 8), payload), folder, "unpacked")
    (folder / "wrapper.py").write_text("x = 1\ny = = 2\n")
    with pytest.raises(BundleError) as caught:
        load_artifact(folder, "unpacked")
    assert str(caught.value) == (
        f"{folder / 'wrapper.py'}, line 2, is no Python\n"
        "  expected: an edit that leaves code which Python can read\n"
        "  got: 'y = = 2': invalid syntax\n"
        "  to do: mend that line, or save the artifact anew"
    )


def test_a_compiler_without_an_unpacked_format_says_so(tmp_path: Path) -> None:
    with pytest.raises(CompilerError) as caught:
        save_artifact(ARTIFACT, tmp_path / "folder", "unpacked", compiler=RecordingCompiler())
    assert str(caught.value) == (
        "Compiler 'recording' has no unpacked format\n"
        "  expected: a compiler with unpack(artifact) and pack(artifact, files)\n"
        "  got: RecordingCompiler\n"
        "  to do: save it with format='binary'"
    )


def test_an_artifact_that_is_not_there_is_none() -> None:
    assert tp.CompilerManager(tp.Config(backend="eager")).artifact(traced(torch.sin, torch.randn(3))) is None


@pytest.fixture(scope="module")
def compiled() -> Artifact:
    """cos(x) + 1 by Inductor."""
    with torch.no_grad():
        graph = traced(lambda x: torch.cos(x) + 1, torch.randn(64))
        manager = tp.CompilerManager(tp.Config(backend="inductor"))
        manager.compile(graph)
        artifact = manager.artifact(graph)
    assert artifact is not None
    return artifact


@pytest.mark.inductor
def test_inductors_piece_as_a_binary_file_computes_the_same(compiled: Artifact, tmp_path: Path) -> None:
    save_artifact(compiled, tmp_path / "piece")
    x = torch.randn(64)
    run = tp.make_compiler("inductor").load(load_artifact(tmp_path / "piece"))
    torch.testing.assert_close(run(x)[0], torch.cos(x) + 1)


@pytest.mark.inductor
def test_inductors_piece_unpacked_can_be_read_edited_and_loaded(compiled: Artifact, tmp_path: Path) -> None:
    folder = tmp_path / "piece"
    save_artifact(compiled, folder, "unpacked")
    compiler, x = tp.make_compiler("inductor"), torch.randn(64)

    same = load_artifact(folder, "unpacked")
    assert same.meta["edited"] == []
    assert torch.equal(compiler.load(same)(x)[0], compiler.load(compiled)(x)[0])

    wrapper = folder / "wrapper.py"
    text = wrapper.read_text()
    assert "cos()" in text
    wrapper.write_text(text.replace("cos()", "sin()"))
    edited = load_artifact(folder, "unpacked")
    assert edited.meta["edited"] == ["wrapper.py"]
    torch.testing.assert_close(compiler.load(edited)(x)[0], torch.sin(x) + 1)

    with pytest.raises(BundleError, match="is not empty"):
        save_artifact(compiled, folder, "unpacked")
    wrapper.chmod(0o666)
    with pytest.raises(UntrustedError):
        load_artifact(folder, "unpacked")


@pytest.mark.inductor
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": 0}, "got: format 0"),
        ({"range": [8, 1]}, "got: ConfigError"),
        ({"sha256": {"../outside": ""}}, "got: ../outside"),
        ({"sha256": 3}, "got: TypeError"),
    ],
    ids=["format", "range", "outside", "mistyped"],
)
def test_a_folder_with_another_description_is_refused(
    compiled: Artifact, tmp_path: Path, change: dict[str, object], said: str
) -> None:
    save_artifact(compiled, tmp_path / "piece", "unpacked")
    description = tmp_path / "piece" / "artifact.json"
    description.write_text(json.dumps({**json.loads(description.read_text()), **change}))
    with pytest.raises(BundleError, match=said):
        load_artifact(tmp_path / "piece", "unpacked")
