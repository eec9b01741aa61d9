from __future__ import annotations

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torch_piecewise.store import BlobRef, Entry, Hit, Miss
from torch_piecewise.store.base import Cause
from torch_piecewise.store.manifest import FORMAT, decode, digests_named_in, encode

KEY = "ab" * 32
SPACE = "backbone@0of1"
BLOB = BlobRef.of(b"bytes")


def entry(**changes: object) -> Entry:
    fields: dict[str, object] = {
        "key": KEY,
        "ingredients": [["torch", "2.13"], ["module", [["eps", 1e-05]]]],
        "blobs": {"artifact": BLOB},
        "meta": {"kind": "program"},
        "companions": {"graph.py": BlobRef.of(b"text")},
        "created": 1.5,
    }
    return Entry(**{**fields, **changes})  # type: ignore[arg-type]


def sealed(body: object) -> bytes:
    """A manifest whose checksum is right, whatever it holds."""
    head = b'{"body":' + json.dumps(body).encode() + b","
    return head + b'\n"sha256":"%s"}\n' % hashlib.sha256(head).hexdigest().encode()


def body(**changes: object) -> dict[str, object]:
    whole = json.loads(encode(entry(), SPACE))["body"]
    return {**whole, **changes}


def test_a_manifest_is_json_and_comes_back():
    text = encode(entry(), SPACE)
    assert json.loads(text)["body"]["key"] == KEY
    assert decode(text, key=KEY, namespace=SPACE) == Hit(entry())


def test_sealing_by_hand_makes_a_manifest_that_is_accepted():
    assert isinstance(decode(sealed(body()), key=KEY, namespace=SPACE), Hit)


scalars = (
    st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False, allow_infinity=False)
)
names = st.text(max_size=5)
ingredients = st.recursive(
    st.lists(st.tuples(names, scalars).map(list), max_size=4),
    lambda inner: st.lists(st.tuples(names, scalars | inner).map(list), max_size=4),
    max_leaves=12,
)


@given(ingredients, st.dictionaries(names, scalars, max_size=3))
def test_any_ingredients_and_meta_come_back_unchanged(parts, meta):
    kept = entry(ingredients=parts, meta=meta)
    assert decode(encode(kept, SPACE), key=KEY, namespace=SPACE) == Hit(kept)


def test_every_truncation_is_damage():
    text = encode(entry(), SPACE)
    for length in range(len(text)):
        found = decode(text[:length], key=KEY, namespace=SPACE)
        assert isinstance(found, Miss)
        assert found.cause is Cause.DAMAGED


def test_every_flipped_bit_is_damage():
    text = encode(entry(), SPACE)
    for place in range(len(text)):
        for bit in range(8):
            altered = bytearray(text)
            altered[place] ^= 1 << bit
            assert isinstance(decode(bytes(altered), key=KEY, namespace=SPACE), Miss)


def test_appended_bytes_are_damage():
    assert isinstance(decode(encode(entry(), SPACE) + b" ", key=KEY, namespace=SPACE), Miss)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"format": FORMAT + 1}, f"format {FORMAT + 1}"),
        ({"format": "1"}, "format"),
        ({"key": "cd" * 32}, "another entry"),
        ({"namespace": "other@0of1"}, "another entry"),
        ({"created": "now"}, "created"),
        ({"created": True}, "created"),
        ({"meta": []}, "meta"),
        ({"blobs": []}, "blobs"),
        ({"blobs": {"a": "x"}}, "'a'"),
        ({"blobs": {"a": {"digest": "../../secret", "size": 1}}}, "'a'"),
        ({"blobs": {"a": {"digest": "ab" * 32, "size": -1}}}, "'a'"),
        ({"blobs": {"a": {"digest": "ab" * 32, "size": True}}}, "'a'"),
        ({"blobs": {"a": {"digest": "ab" * 32, "size": 1.0}}}, "'a'"),
        ({"companions": {"../x": {"digest": "ab" * 32, "size": 1}}}, "companion"),
        ({"ingredients": {"a": 1}}, "ingredient"),
        ({"ingredients": "ab"}, "ingredient"),
        ({"ingredients": [["a", {"b": 1}]]}, "ingredient"),
        ({"ingredients": [["a", 1, 2]]}, "ingredient"),
        ({"ingredients": [[["a"], 1]]}, "ingredient"),
    ],
)
def test_a_foreign_or_mistyped_manifest_is_a_miss_that_says_what_is_wrong(changes, reason):
    found = decode(sealed(body(**changes)), key=KEY, namespace=SPACE)
    assert isinstance(found, Miss)
    assert found.cause is Cause.FOREIGN
    assert reason in found.reason


@pytest.mark.parametrize("whole", [None, [], "text", 1, {}, {"format": FORMAT}])
def test_a_body_of_another_shape_is_a_miss(whole):
    assert isinstance(decode(sealed(whole), key=KEY, namespace=SPACE), Miss)


def test_json_nested_too_deep_to_parse_is_a_miss():
    head = b'{"body":' + b"[" * 100_000 + b"]" * 100_000 + b","
    text = head + b'\n"sha256":"%s"}\n' % hashlib.sha256(head).hexdigest().encode()
    assert isinstance(decode(text, key=KEY, namespace=SPACE), Miss)


def test_every_blob_of_any_format_is_seen_by_clean_up():
    text = sealed({"format": 99, "somewhere": [{"else": BLOB.digest}]})
    assert BLOB.digest in digests_named_in(text)
