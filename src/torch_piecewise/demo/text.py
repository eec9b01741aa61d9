"""Text to tokens and back: the model's own chat template, and answers as they come.

Uses ``tokenizers`` and ``jinja2`` directly: importing transformers and its loader for them would take
longer than everything else at the start of the demo.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2.sandbox import ImmutableSandboxedEnvironment

from torch_piecewise.demo.base import DemoError

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True)
class Chat:
    """A tokenizer and the chat template that belongs to it.

    Attributes:
        template: Jinja text.
        words: what the template may refer to (``bos_token`` and so on).
        stop: tokens that end an answer.
    """

    tokenizer: Tokenizer
    template: str
    words: dict[str, Any]
    stop: frozenset[int]

    @classmethod
    def load(cls, folder: Path) -> Chat:
        """From a folder in the format of transformers.

        Raises:
            DemoError: ``tokenizers`` is not installed, or the stop token is not in the vocabulary.
        """
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise DemoError(
                "The model's tokenizer cannot be loaded",
                expected="tokenizers (comes with transformers)",
                got=str(error),
                hint="pip install transformers",
            ) from error
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        config: dict[str, Any] = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
        words = {name: word for name, word in config.items() if name.endswith("_token")}
        stop = tokenizer.token_to_id(str(words.get("eos_token")))
        if stop is None:
            raise DemoError("The tokenizer does not know its stop token", got=repr(words.get("eos_token")))
        return cls(
            tokenizer=tokenizer,
            template=(folder / "chat_template.jinja").read_text("utf-8"),
            words=words,
            stop=frozenset({stop}),
        )

    def prompt(self, text: str) -> list[int]:
        """The tokens of a conversation in which the user has said ``text`` and the answer comes next."""
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        rendered = environment.from_string(self.template).render(
            messages=[{"role": "user", "content": text}], add_generation_prompt=True, **self.words
        )
        return list(self.tokenizer.encode(rendered, add_special_tokens=False).ids)

    def stream(self) -> TextStream:
        """A new answer, to be turned into text token by token."""
        return TextStream(self.tokenizer)


class TextStream:
    """Text of one answer, in chunks that never hold half a character."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        from tokenizers.decoders import DecodeStream  # optional, as in Chat.load

        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)
        self._held: list[int] = []

    def push(self, token: int) -> str:
        """The text that ``token`` completes; empty while a character is incomplete."""
        text: str | None = self._stream.step(self._tokenizer, token)
        self._held = [] if text else [*self._held, token]
        return text or ""

    def rest(self) -> str:
        """What an answer that ended within a character leaves, as a replacement sign; mostly empty."""
        held, self._held = self._held, []
        text: str = self._tokenizer.decode(held, skip_special_tokens=True)
        return text
