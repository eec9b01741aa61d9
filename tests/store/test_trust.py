from __future__ import annotations

import os
from pathlib import Path

import pytest

from torch_piecewise.errors import UntrustedError
from torch_piecewise.store import Hit, open_store
from torch_piecewise.store.files import Files
from torch_piecewise.store.trust import Trust, trust_of_this_process


def status(mode: int, uid: int = 1000, gid: int = 1000) -> os.stat_result:
    return os.stat_result((0o040000 | mode, 0, 0, 1, uid, gid, 0, 0, 0, 0))


def trust(uid: int | None = 1000, private: bool = False) -> Trust:
    return Trust(uid=uid, owners=frozenset({0}), is_private_group=lambda gid: private)


PATH = Path("/some/cache folder")


@pytest.mark.parametrize("mode", [0o700, 0o755, 0o555, 0o750])
def test_a_folder_that_only_its_owner_writes_to_passes(mode):
    trust().check(PATH, status(mode))


def test_a_folder_of_root_passes():
    trust().check(PATH, status(0o755, uid=0))


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o757, 0o1777, 0o722])
def test_a_folder_that_others_can_write_to_is_refused_with_the_command_that_mends_it(mode):
    with pytest.raises(UntrustedError) as refused:
        trust().check(PATH, status(mode))
    assert "chmod -R go-w '/some/cache folder'" in str(refused.value)
    assert f"mode {mode:04o}" in str(refused.value)
    assert "TORCH_PIECEWISE_CACHE_DIR" in str(refused.value)


def test_a_folder_of_another_user_is_refused_with_the_command_that_mends_it():
    with pytest.raises(UntrustedError) as refused:
        trust().check(PATH, status(0o700, uid=1001))
    assert "owner is user 1001" in str(refused.value)
    assert "chown -R 1000 '/some/cache folder'" in str(refused.value)


def test_root_does_not_trust_the_folder_of_a_user():
    with pytest.raises(UntrustedError, match="owner is user 1000"):
        trust(uid=0).check(PATH, status(0o700, uid=1000))


def test_a_group_of_its_own_may_write_as_umask_002_makes_it():
    trust(private=True).check(PATH, status(0o775))
    with pytest.raises(UntrustedError):
        trust(private=True).check(PATH, status(0o777))


def test_without_users_nothing_is_refused():
    trust(uid=None).check(PATH, status(0o777, uid=5))


def test_the_policy_is_about_the_user_this_process_acts_as():
    assert trust_of_this_process().uid == os.geteuid()


def test_only_a_group_with_the_users_name_and_nobody_else_is_private(monkeypatch):
    import grp
    import pwd

    user = pwd.struct_passwd(("ada", "x", 1000, 1000, "", "/home/ada", "/bin/sh"))
    groups = {
        1000: grp.struct_group(("ada", "x", 1000, [])),
        1001: grp.struct_group(("staff", "x", 1001, [])),
    }
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setattr("pwd.getpwuid", lambda uid: user)
    monkeypatch.setattr("grp.getgrgid", lambda gid: groups[gid])
    private = trust_of_this_process().is_private_group
    assert private(1000)
    assert not private(1001)
    assert not private(4242)
    groups[1000] = grp.struct_group(("ada", "x", 1000, ["ada", "mallory"]))
    assert not private(1000)


def test_opening_a_root_that_others_can_write_to_is_refused(root):
    root.mkdir()
    root.chmod(0o777)
    with pytest.raises(UntrustedError, match="chmod -R go-w"):
        open_store(root)
    root.chmod(0o755)
    open_store(root)


@pytest.mark.parametrize("part", ["root", "entries", "namespace", "fan", "entry", "manifest"])
def test_each_step_down_to_an_entry_is_judged_again_when_it_is_read(opened, root, key, draft, part):
    opened.store.put(key("a"), draft("a"))
    manifest = next(root.rglob("manifest.json"))
    folder = manifest.parent
    parts = {
        "root": root,
        "entries": root / "entries",
        "namespace": folder.parent.parent,
        "fan": folder.parent,
        "entry": folder,
        "manifest": manifest,
    }
    parts[part].chmod(0o777)
    with pytest.raises(UntrustedError) as refused:
        opened.store.get(key("a"))
    assert str(parts[part]) in str(refused.value)
    parts[part].chmod(0o755)
    assert isinstance(opened.store.get(key("a")), Hit)


def test_nothing_is_put_below_a_folder_that_others_can_write_to(opened, root, key, draft):
    opened.store.put(key("a"), draft("a"))
    (root / "entries").chmod(0o777)
    with pytest.raises(UntrustedError):
        opened.store.put(key("b"), draft("b"))


def test_a_blob_is_not_handed_out_as_a_file_where_others_could_exchange_it(opened, root, key, draft):
    opened.store.put(key("a"), draft("a"))
    ref = opened.store.get(key("a")).value.blobs["artifact"]
    (root / "blobs" / ref.digest[:2]).chmod(0o777)
    with pytest.raises(UntrustedError):
        opened.store.blobs.file(ref)
    # As bytes it is verified after reading, so that nobody can exchange it in between.
    assert isinstance(opened.store.blobs.read(ref), Hit)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root, to give a file away")
def test_a_root_of_another_user_is_refused(root):
    root.mkdir()
    os.chown(root, 65533, 65533)
    with pytest.raises(UntrustedError, match="owner is user 65533"):
        open_store(root, files=Files(durable=False))
