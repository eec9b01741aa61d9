"""A compiler that nobody may call."""

from __future__ import annotations

from typing import Any


class _Refuses:
    name = "refuses"

    def fingerprint(self) -> str:
        return self.name

    def compile(self, *_given: Any) -> Any:
        raise AssertionError("nothing is to be compiled")

    def load(self, *_given: Any) -> Any:
        raise AssertionError("nothing is to be loaded")


refuses = _Refuses()
