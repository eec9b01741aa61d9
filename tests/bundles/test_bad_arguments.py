"""What people get wrong at the doors of bundles: each an error of ours that says what to do."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import nn

import torch_piecewise as tp
from tests.bundles import served
from torch_piecewise.baking.cli import bake as bake_command
from torch_piecewise.errors import BundleError, BundleFileError, ConfigError, StoreError
from torch_piecewise.runtime.file import write_bundle

SETTINGS: dict[str, Any] = {"backend": "eager", "disable_cache": True, **served.PLAIN_SETTINGS}


def told(kind: type[Exception], call: Any) -> str:
    with pytest.raises(kind) as refused:
        call()
    return str(refused.value)


# -- tp.load


def test_swapped_arguments_are_told_apart(baked: Path, lm: nn.Module) -> None:
    assert told(ConfigError, lambda: tp.load(lm, baked)) == (  # type: ignore[arg-type]
        "tp.load takes the bundle first\n"
        "  expected: the path of a file that tp.bake wrote\n"
        "  got: LM\n"
        "  to do: tp.load(path, model)"
    )
    assert "got: NoneType" in told(ConfigError, lambda: tp.load(None, lm))  # type: ignore[arg-type]
    key: Any = 3
    assert told(ConfigError, lambda: tp.load(baked, lm, signing_key_file=key)) == (
        "signing_key_file of tp.load is no path\n  expected: the path of a key file, or None\n  got: 3"
    )


def test_a_bundle_that_is_not_there_or_is_a_folder_is_said_so(tmp_path: Path, lm: nn.Module) -> None:
    missing = tmp_path / "no.tpb"
    assert told(BundleFileError, lambda: tp.load(missing, lm)) == (
        f"The bundle {missing} cannot be read\n"
        "  expected: a file that tp.bake wrote\n"
        "  got: No such file or directory\n"
        "  to do: check the path, and that this user may read it"
    )
    assert "got: Is a directory" in told(BundleFileError, lambda: tp.load(tmp_path, lm))
    with pytest.raises(OSError) as refused:
        tp.load(missing, lm)
    assert refused.value.errno == errno.ENOENT


def test_weights_that_are_not_there_are_said_so(baked: Path, tmp_path: Path) -> None:
    missing = tmp_path / "no.safetensors"
    assert told(BundleFileError, lambda: tp.load(baked, missing)) == (
        f"The weights {missing} cannot be read\n"
        "  expected: a safetensors file\n"
        "  got: No such file or directory\n"
        "  to do: check the path, and that this user may read it"
    )
    assert "got: Is a directory" in told(BundleFileError, lambda: tp.load(baked, tmp_path))


def test_a_flipped_bit_in_the_end_record_is_damage(baked: Path, lm: nn.Module, tmp_path: Path) -> None:
    data = baked.read_bytes()
    for offset in range(1, 23):
        for bit in range(8):
            changed = bytearray(data)
            changed[-offset] ^= 1 << bit
            (tmp_path / "b").write_bytes(changed)
            try:
                tp.load(tmp_path / "b", lm)
            except BundleError as error:
                assert "is no intact bundle" in str(error)  # noqa: PT017 - some bits mean nothing


@pytest.mark.parametrize("way", ["argument", "environment"])
def test_a_key_file_that_is_not_there_is_said_so(
    baked: Path, lm: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if way == "environment":
        monkeypatch.setenv("TORCH_PIECEWISE_SIGNING_KEY_FILE", "key")
    options = {"signing_key_file": "key"} if way == "argument" else {}
    assert told(StoreError, lambda: tp.load(baked, lm, **options)) == (
        "The key file key cannot be read\n"
        "  expected: a file with 64 hexadecimal digits\n"
        "  got: No such file or directory\n"
        "  to do: check the path; a new key is made with: "
        "python -c 'import secrets; print(secrets.token_hex(32))'"
    )


def test_an_empty_key_is_no_key(
    baked: Path, lm: nn.Module, no_grad: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_PIECEWISE_SIGNING_KEY_FILE", "")
    tp.load(baked, lm)  # as a variable that is not set
    assert "cannot be read" in told(StoreError, lambda: tp.load(baked, lm, signing_key_file=""))


# -- calls of a loaded model


def test_a_call_with_wrong_arguments_is_refused_in_the_models_name(tmp_path: Path, no_grad: None) -> None:
    tp.bake(served.Plain(), served.example("Plain", 3), tmp_path / "b", **SETTINGS)
    plain = served.Plain()
    started = tp.load(tmp_path / "b", served.Plain())
    x = torch.randn(3, 4)
    for args, kwargs in (((x,), {"scal": 2.0}), ((), {}), ((x, 2.0, 3), {}), ((), {"scale": 1.0})):

        def call(model: nn.Module, args: Any = args, kwargs: Any = kwargs) -> Any:
            return model(*args, **kwargs)

        mine, own = told(TypeError, lambda: call(started)), told(TypeError, lambda: call(plain))
        assert mine.startswith("Plain.forward() ")
        assert mine.replace("1 to 2", "2 to 3").replace("3 were", "4 were") == own


# -- tp.bake


def test_a_place_that_cannot_be_written_is_refused_before_anything_is_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Untraceable(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise AssertionError("too late")

    def bake(path: Any) -> str:
        return told(BundleFileError, lambda: tp.bake(Untraceable(), (torch.randn(3, 4),), path, **SETTINGS))

    assert bake(tmp_path / "no" / "b.tpb") == (
        f"The bundle {tmp_path / 'no' / 'b.tpb'} cannot be written\n"
        "  expected: a path in a folder that exists and that this user may write to\n"
        f"  got: no folder {tmp_path / 'no'}\n"
        "  to do: make the folder, or name another path"
    )
    assert f"got: {tmp_path} is a folder" in bake(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert "got: . is a folder" in bake("")
    assert not list(tmp_path.iterdir())


def test_a_failed_write_is_said_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("torch_piecewise.runtime.file.os.fsync", full)
    text = told(
        BundleFileError, lambda: write_bundle(tmp_path / "b", {}, {"m": b"x"}, lambda _document: None)
    )
    assert "cannot be written" in text
    assert "got: No space left on device" in text
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"path": None},
            "tp.bake takes a path to write to\n  expected: str or os.PathLike\n  got: NoneType",
        ),
        (
            {"config": {"backend": "eager"}},
            (
                "config of tp.bake is no Config\n  expected: tp.Config(...) or None\n  got: dict\n"
                "  to do: give settings as keyword arguments: tp.bake(..., backend='eager')"
            ),
        ),
        (
            {"example_kwargs": [1]},
            (
                "The example inputs of tp.bake are no call\n"
                "  expected: a tuple of positional arguments, or a dict of keyword arguments\n"
                "  got: example_kwargs of type list\n"
                "  to do: write (x,) for one argument; a tuple and example_kwargs={...} for both kinds"
            ),
        ),
        (
            {"example_inputs": {"y": torch.randn(3, 4)}},
            (
                "The example inputs of tp.bake are no call of Plain.forward\n"
                "  expected: (x: 'Tensor', scale: 'float' = 2.0) -> 'tuple[Tensor, Tensor, int]'\n"
                "  got: missing a required argument: 'x'"
            ),
        ),
        (
            {"example_inputs": ()},
            (
                "The example inputs of tp.bake are no call of Plain.forward\n"
                "  expected: (x: 'Tensor', scale: 'float' = 2.0) -> 'tuple[Tensor, Tensor, int]'\n"
                "  got: missing a required argument: 'x'"
            ),
        ),
    ],
)
def test_arguments_of_the_wrong_kind_are_refused(
    tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    given: dict[str, Any] = {"path": tmp_path / "b", "example_inputs": (torch.randn(3, 4),), **changed}
    assert told(ConfigError, lambda: tp.bake(served.Plain(), **given, **SETTINGS)) == message


# -- torch-piecewise bake


def test_the_command_says_how_a_function_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"serving_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text("make = 3\ndef no_dict():\n    return 1, (2,), 3\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))

    def run(target: str) -> str:
        error = CliRunner().invoke(bake_command, [target, "out.tpb"]).exception
        assert isinstance(error, ConfigError)
        return str(error)

    assert run(name) == (
        f"{name!r} does not name a function\n"
        "  expected: MODULE:FUNCTION, like mypackage.serving:make\n"
        "  got: no colon\n"
        f"  to do: write {name}:FUNCTION, the function that makes the model and its example inputs"
    )
    assert "got: no function, but int" in run(f"{name}:make")
    assert "got: settings of type int" in run(f"{name}:no_dict")
