from __future__ import annotations

import os
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torch_piecewise.errors import StoreError, UntrustedError
from torch_piecewise.store.signing import SigningKey, load_key_file, new_key_file

KEY = SigningKey(b"k" * 32)
OTHER = SigningKey(b"o" * 32)
DOCUMENT = {"blobs": {"a": "ab" * 32}, "version": 1}


def test_what_was_signed_is_accepted_however_its_keys_are_ordered():
    signature = KEY.sign(DOCUMENT)
    KEY.verify({"version": 1, "blobs": {"a": "ab" * 32}}, signature)


def test_an_unsigned_bundle_is_refused_when_a_key_is_configured():
    with pytest.raises(UntrustedError, match="not signed") as refused:
        KEY.verify(DOCUMENT, None)
    assert "to do: sign it with this key" in str(refused.value)


def test_an_altered_bundle_is_refused():
    with pytest.raises(UntrustedError, match="it was altered"):
        KEY.verify({**DOCUMENT, "version": 2}, KEY.sign(DOCUMENT))


def test_another_keys_signature_is_refused_and_the_key_named():
    with pytest.raises(UntrustedError, match=f"by key '{OTHER.key_id}'"):
        KEY.verify(DOCUMENT, OTHER.sign(DOCUMENT))


@pytest.mark.parametrize("signature", ["", "x", "hmac-md5:a:b", "hmac-sha256::", "ü", "a:b:c:d", "\udc80"])
def test_a_malformed_signature_is_refused(signature):
    with pytest.raises(UntrustedError):
        KEY.verify(DOCUMENT, signature)


@given(st.integers(0, 82), st.characters(categories=["L", "N"]))
def test_no_changed_character_is_accepted(place, character):
    signature = KEY.sign(DOCUMENT)
    changed = signature[:place] + character + signature[place + 1 :]
    if changed != signature:
        with pytest.raises(UntrustedError):
            KEY.verify(DOCUMENT, changed)


def test_the_secret_is_not_shown():
    assert "kkkk" not in repr(KEY)
    assert KEY.secret.hex() not in KEY.sign(DOCUMENT)


def test_a_key_file_is_private_and_gives_the_same_key_back(tmp_path):
    key = new_key_file(tmp_path / "key")
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    assert load_key_file(tmp_path / "key") == key
    assert new_key_file(tmp_path / "other").secret != key.secret


def test_an_existing_key_file_is_not_overwritten(tmp_path):
    key = new_key_file(tmp_path / "key")
    with pytest.raises(StoreError, match="File exists"):
        new_key_file(tmp_path / "key")
    assert load_key_file(tmp_path / "key") == key


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o660, 0o604])
def test_a_key_file_that_others_can_read_is_refused_with_the_command_that_mends_it(tmp_path, mode):
    new_key_file(tmp_path / "key")
    (tmp_path / "key").chmod(mode)
    with pytest.raises(UntrustedError) as refused:
        load_key_file(tmp_path / "key")
    assert f"chmod 600 {tmp_path / 'key'}" in str(refused.value)
    assert f"mode {mode:04o}" in str(refused.value)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root, to give a file away")
def test_a_key_file_of_another_user_is_refused(tmp_path):
    new_key_file(tmp_path / "key")
    os.chown(tmp_path / "key", 65533, 65533)
    with pytest.raises(UntrustedError, match="belongs to another user"):
        load_key_file(tmp_path / "key")


@pytest.mark.parametrize("content", [b"", b"00", b"zz" * 32, b"00" * 33, pickle.dumps(1)])
def test_a_file_that_holds_no_key_is_refused(tmp_path, content):
    (tmp_path / "key").write_bytes(content)
    (tmp_path / "key").chmod(0o600)
    with pytest.raises(StoreError, match="holds no key"):
        load_key_file(tmp_path / "key")


def test_a_missing_key_file_says_so(tmp_path):
    with pytest.raises(StoreError, match=r"The key file .*none cannot be read"):
        load_key_file(tmp_path / "none")
