"""Which part of a model is being compiled, so that several parts share a root without meeting.

The tag is a ``ContextVar``: each thread and each task has its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass

from torch_piecewise.errors import ConfigError

DEFAULT_TAG = "backbone"


@dataclass(frozen=True)
class ModelTag:
    """One part of a model.

    Attributes:
        name: as given to :func:`set_model_tag`.
        is_encoder: whether its compile time is counted apart.
    """

    name: str = DEFAULT_TAG
    is_encoder: bool = False


BACKBONE = ModelTag()
"""The part that a model is where nothing else is said."""

_CURRENT: ContextVar[ModelTag] = ContextVar("torch_piecewise_model_tag", default=BACKBONE)


@contextlib.contextmanager
def set_model_tag(tag: str, is_encoder: bool = False) -> Iterator[ModelTag]:
    """Name the part of a model that is compiled inside the block.

    ::

        with tp.set_model_tag("vision", is_encoder=True):
            encoder = tp.compile(VisionTower(), dynamic_arg_dims={"pixels": 0})

    What counts is where a model is handed to ``tp.compile``, where an instance of a decorated class is made,
    and, for a function decorated outside of any block, where it is first called. ``tp.compile(tag=...)``
    beats the block. Outside of any block the tag is ``"backbone"``. May be nested; each thread and each task
    has its own.

    Args:
        tag: any text; parts with different tags never take each other's programs from the store.
        is_encoder: the part runs once before the others, for inputs of any size: its last range is
            open-ended, and its time is counted apart (``stats.encoder_compile_seconds``).

    Raises:
        ConfigError: the tag is no text, or is in force already.
    """
    if not isinstance(tag, str) or not tag:
        raise ConfigError(
            "A model tag names a part of a model",
            expected="a text that is not empty, such as 'vision'",
            got=f"{tag!r} ({type(tag).__name__})",
        )
    if tag == _CURRENT.get().name:
        raise ConfigError(
            f"The model tag {tag!r} is in force already",
            expected="a tag other than the one around it",
            got=f"set_model_tag({tag!r}) where the tag is {tag!r}"
            + (", as it is outside of any block" if tag == DEFAULT_TAG else ""),
            hint="give this part a name of its own, or leave this set_model_tag out",
        )
    token = _CURRENT.set(ModelTag(tag, is_encoder))
    try:
        yield _CURRENT.get()
    finally:
        _CURRENT.reset(token)


def current_tag(name: str | None = None) -> ModelTag:
    """The part that is compiled here.

    Args:
        name: beats that of the block.
    """
    current = _CURRENT.get()
    return current if name is None else ModelTag(name, current.is_encoder)


def tag_in_force() -> ModelTag | None:
    """The innermost block's; None outside of any."""
    current = _CURRENT.get()
    return None if current == BACKBONE else current
