"""Text to tokens and back."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from torch_piecewise.demo.base import DemoError
from torch_piecewise.demo.text import Chat, TextStream


@pytest.mark.parametrize("text", ["plain", "é", "naïve 中文 text", "🙂🙂", "a🙂b", "e\u0301", " \n\t x"])
def test_a_streamed_answer_is_the_text_and_never_shows_half_a_character(
    text: str, tokenizer: Tokenizer
) -> None:
    stream = TextStream(tokenizer)
    chunks = [stream.push(token) for token in tokenizer.encode(text).ids]
    assert "".join(chunks) == text
    assert "\ufffd" not in "".join(chunks)
    assert stream.rest() == ""


def test_text_comes_out_with_the_byte_that_completes_it(tokenizer: Tokenizer) -> None:
    stream = TextStream(tokenizer)
    assert [stream.push(token) for token in tokenizer.encode("a🙂b").ids] == ["a", "", "", "", "🙂", "b"]


def test_an_answer_that_ends_within_a_character_leaves_a_replacement_sign(tokenizer: Tokenizer) -> None:
    stream = TextStream(tokenizer)
    ids = tokenizer.encode("ok 🙂").ids[:-1]
    assert "".join(stream.push(token) for token in ids) == "ok "
    assert set(stream.rest()) == {"\ufffd"}
    assert stream.rest() == ""


def test_special_tokens_are_not_shown(tokenizer: Tokenizer) -> None:
    stream, end = TextStream(tokenizer), tokenizer.encode("<end>").ids[0]
    assert stream.push(tokenizer.encode("x").ids[0]) + stream.push(end) + stream.rest() == "x"


def test_a_prompt_is_the_template_filled_in(folder: Path) -> None:
    chat = Chat.load(folder)
    text = chat.tokenizer.decode(chat.prompt("hi"), skip_special_tokens=False)
    assert text == "<start>user:hi<end><start>"


def test_the_stop_token_is_the_one_of_the_config(folder: Path, tokenizer: Tokenizer) -> None:
    assert Chat.load(folder).stop == {tokenizer.token_to_id("<end>")}


def test_a_missing_tokenizers_package_is_an_error_that_says_what_to_install(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(DemoError, match="cannot be loaded") as caught:
        Chat.load(folder)
    assert "pip install transformers" in str(caught.value)


def test_a_stop_token_outside_the_vocabulary_is_an_error(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<stop>"}), "utf-8")
    with pytest.raises(DemoError, match="stop token"):
        Chat.load(tmp_path)
