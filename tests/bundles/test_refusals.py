"""What a bundle is refused for, and that the reason is said."""

from __future__ import annotations

import random
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import torch_piecewise as tp
from tests.bundles import served
from tests.bundles.conftest import Rewrite
from tests.models.checks import assert_same
from torch_piecewise.errors import BundleError, UntrustedError
from torch_piecewise.runtime.host import check_host, this_host
from torch_piecewise.store.signing import new_key_file


def refusal(path: Path, model: Any, **options: Any) -> str:
    with pytest.raises(BundleError) as refused:
        tp.load(path, model, **options)
    assert not isinstance(model, nn.Module) or model._compiled_call_impl is None
    return str(refused.value)


# -- signatures


@pytest.fixture
def signed(tmp_path: Path) -> Path:
    new_key_file(tmp_path / "key")
    path = tmp_path / "signed.tpb"
    tp.bake(
        served.Plain(),
        served.example("Plain", 3),
        path,
        backend="eager",
        disable_cache=True,
        signing_key_file=str(tmp_path / "key"),
        **served.PLAIN_SETTINGS,
    )
    return path


def test_a_signed_bundle_starts_with_its_key_and_without_any(signed: Path, no_grad: None) -> None:
    x = torch.randn(5, 4)
    for options in ({"signing_key_file": signed.parent / "key"}, {}):
        model = served.Plain()
        want = nn.functional.gelu(model.layer(x)) * 2 + 1
        assert_same(tp.load(signed, model, **options)(x)[0], want)


def test_an_unsigned_bundle_is_refused_where_a_key_is_configured(
    baked: Path, lm: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new_key_file(tmp_path / "key")
    monkeypatch.setenv("TORCH_PIECEWISE_SIGNING_KEY_FILE", str(tmp_path / "key"))
    with pytest.raises(UntrustedError, match="The bundle is not signed, and a signing key is configured"):
        tp.load(baked, lm)


def test_another_key_is_refused(signed: Path, tmp_path: Path) -> None:
    other = new_key_file(tmp_path / "other")
    with pytest.raises(UntrustedError, match=f"expected: a signature by key {other.key_id}"):
        tp.load(signed, served.Plain(), signing_key_file=tmp_path / "other")


def test_a_signed_bundle_that_was_altered_is_refused(signed: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(signed) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    contents["manifest.json"] = contents["manifest.json"].replace(b'"Plain"', b'"Plein"')
    with zipfile.ZipFile(tmp_path / "altered.tpb", "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    with pytest.raises(UntrustedError, match="by that key over something else: it was altered"):
        tp.load(tmp_path / "altered.tpb", served.Plain(), signing_key_file=tmp_path / "key")


# -- damage


def test_every_changed_member_is_named(rewritten: Rewrite, lm: nn.Module) -> None:
    def spoil(members: dict[str, bytes]) -> None:
        members["runner.py"] += b"# more\n"

    assert "'runner.py' is larger than" in refusal(rewritten(members=spoil), lm)

    def swap(members: dict[str, bytes]) -> None:
        members["runner.py"] = bytes(reversed(members["runner.py"]))

    text = refusal(rewritten(members=swap), lm)
    assert "is no intact bundle" in text
    assert "got: the bytes of 'runner.py' are not those that were baked" in text
    assert "to do: copy it again from where it was made, or bake it again" in text


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_bundle_is_refused(baked: Path, lm: nn.Module, tmp_path: Path, share: float) -> None:
    data = baked.read_bytes()
    (tmp_path / "cut.tpb").write_bytes(data[: int(len(data) * share)])
    assert "is no intact bundle" in refusal(tmp_path / "cut.tpb", lm)


def test_a_flipped_bit_is_refused_or_changes_nothing(baked: Path, lm: nn.Module, tmp_path: Path) -> None:
    data = baked.read_bytes()
    (ids,) = served.example("LM", 4)
    with torch.no_grad():
        want = lm(ids)
    refused = 0
    picked = random.Random(0)
    for _ in range(40):
        flipped = bytearray(data)
        flipped[picked.randrange(len(data))] ^= 1 << picked.randrange(8)
        (tmp_path / "flipped.tpb").write_bytes(flipped)
        try:
            started = tp.load(tmp_path / "flipped.tpb", lm)
        except BundleError:
            refused += 1
            continue
        with torch.no_grad():
            assert_same(started(ids), want)
        tp.program_of  # noqa: B018 - the door stays whole
        lm._compiled_call_impl = None
    assert refused > 30


@pytest.mark.parametrize("name", ["../evil.so", "/etc/evil", "a\\b", "code/./x", "C:evil"])
def test_a_member_that_leads_elsewhere_is_refused(rewritten: Rewrite, lm: nn.Module, name: str) -> None:
    path = rewritten(members=lambda members: members.update({name: b"x"}))
    assert f"a member named {name!r}" in refusal(path, lm)


def test_a_member_beside_the_list_or_missing_is_refused(rewritten: Rewrite, lm: nn.Module) -> None:
    path = rewritten(members=lambda members: members.update({"more.py": b"x"}))
    assert "the member 'more.py' is not in the manifest" in refusal(path, lm)
    path = rewritten(members=lambda members: members.pop("entry.py"))  # type: ignore[arg-type,return-value]
    assert "the member 'entry.py' is missing" in refusal(path, lm)


def test_another_format_is_refused(rewritten: Rewrite, lm: nn.Module) -> None:
    text = refusal(rewritten(lambda manifest: manifest.update(format="torch-piecewise bundle 0")), lm)
    assert "is a bundle of another format" in text
    assert "expected: torch-piecewise bundle 4" in text


def test_a_failed_bake_leaves_the_old_file_and_nothing_beside_it(baked: Path, tmp_path: Path) -> None:
    path = tmp_path / "old.tpb"
    path.write_bytes(baked.read_bytes())

    class Global(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * TABLE

    with pytest.raises(BundleError, match="its code reads tensors that are not its own"):
        tp.bake(
            Global(),
            (torch.randn(3, 2),),
            path,
            backend="eager",
            disable_cache=True,
            dynamic_arg_dims={"x": 0},
        )
    assert path.read_bytes() == baked.read_bytes()
    assert [one.name for one in tmp_path.iterdir()] == ["old.tpb"]


TABLE = torch.randn(2)


# -- another machine


def test_another_torch_is_refused(rewritten: Rewrite, lm: nn.Module) -> None:
    text = refusal(rewritten(lambda manifest: manifest["host"].update(torch="1.0.0")), lm)
    assert text == (
        "The bundle was made for another torch\n"
        "  expected: 1.0.0\n"
        f"  got: {torch.__version__}\n"
        "  to do: install that version, or bake it again"
    )


def test_a_device_that_is_not_here_is_refused(rewritten: Rewrite, lm: nn.Module) -> None:
    path = rewritten(lambda manifest: manifest["host"].update(devices={"cuda": [1, 0]}))
    assert "The bundle was made for another " in refusal(path, lm)


def test_missing_instruction_sets_are_named(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("flags\t\t: fpu sse sse2 avx\n")
    made_for = {**this_host(["cpu"]), "flags": ["avx", "avx512f", "sse2"]}
    with pytest.raises(BundleError) as refused:
        check_host(made_for, has_code=True, cpuinfo=tmp_path / "cpuinfo")
    assert str(refused.value) == (
        "The bundle was made for another CPU\n"
        "  expected: one with avx512f\n"
        "  got: one without avx512f\n"
        "  to do: bake it on a machine like this one"
    )
    check_host(made_for, has_code=False, cpuinfo=tmp_path / "cpuinfo")
    for what, value in (("architecture", "sparc"), ("system", "Plan 9"), ("capability", "AVX9000")):
        with pytest.raises(BundleError, match=f"another (CPU )?{what}"):
            check_host({**this_host(["cpu"]), what: value}, has_code=True)


# -- another model


def test_the_first_parameter_that_differs_is_named(baked: Path, lm: nn.Module) -> None:
    lm.get_submodule("layers.1.out").weight = nn.Parameter(torch.randn(16, 8))
    assert refusal(baked, lm) == (
        "The model does not fit the bundle: layers.1.out.weight differs\n"
        "  expected: float32 [16, 16] on cpu\n"
        "  got: float32 [16, 8] on cpu\n"
        "  to do: load the weights, dtype and device that the bundle was baked with, or bake it for these"
    )


def test_another_dtype_and_a_missing_parameter_are_named(baked: Path) -> None:
    text = refusal(baked, served.LM().eval().bfloat16())
    assert "embed.weight differs" in text
    assert "got: bfloat16 [50, 16] on cpu" in text
    text = refusal(baked, served.LM(depth=2).eval())
    assert "layers.2.norm.weight differs" in text
    assert "got: no parameter of that name" in text


def test_a_transposed_weight_is_refused(baked: Path, lm: nn.Module) -> None:
    lm.get_submodule("layers.0.out").weight = nn.Parameter(torch.randn(16, 16).t())
    assert "expected: strides [16, 1]\n  got: strides [1, 16]" in refusal(baked, lm)


# -- other code


def test_a_splitting_op_that_nobody_registered_is_refused(rewritten: Rewrite, lm: nn.Module) -> None:
    def rename(manifest: dict[str, Any]) -> None:
        for name, constant in manifest["runner"]["constants"].items():
            if isinstance(constant, dict) and "splitting_op" in constant:
                manifest["runner"]["constants"][name] = {"splitting_op": "other::attend", "module": "nowhere"}

    assert refusal(rewritten(rename), lm) == (
        "The bundle calls the splitting op other::attend, which nobody registered\n"
        "  expected: a function under @tp.splitting_op('other::attend', ...); it was in module 'nowhere'\n"
        "  got: no such op, also after importing that module\n"
        "  to do: import the code that defines it before tp.load, or put its folder on sys.path"
    )


@pytest.mark.parametrize("name", ["os.system", "builtins.eval", "subprocess.run", "torch.no_such_function"])
def test_a_function_that_no_bundle_may_name_is_refused(rewritten: Rewrite, lm: nn.Module, name: str) -> None:
    def aim(manifest: dict[str, Any]) -> None:
        manifest["runner"]["constants"] = {"x": {"name": name}}

    text = refusal(rewritten(aim), lm)
    assert "The bundle names something that is not here" in text
    assert f"got: {name}" in text
