from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import torch_piecewise as tp
from tests.graphs import traced
from torch_piecewise.artifact import Artifact
from torch_piecewise.errors import BundleError, CompilerError, UntrustedError
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
    with pytest.raises(UntrustedError, match=r"chmod -R go-w .*piece"):
        load_artifact(tmp_path / "piece")


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
        "  got: a LiveArtifact, which lives with the process"
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
