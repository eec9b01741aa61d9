"""Whose code a module is: the user's, which is read, or installed code, which is named with its version."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import PurePath
from types import ModuleType


def top_of(module: str) -> str:
    """The top package of a dotted module name."""
    return module.partition(".")[0]


@dataclass(frozen=True)
class Ownership:
    """Which modules count as the user's.

    Attributes:
        home: top packages that do, wherever they are installed; torch and the standard library never do.
    """

    home: frozenset[str]

    def owns(self, module: str) -> bool:
        """Whether the module's code is to be read: it is at home, or not an installed package."""
        top = top_of(module)
        if not top or top == "torch" or top in sys.stdlib_module_names:
            return False
        if top in self.home:
            return True
        file = getattr(sys.modules.get(module) or sys.modules.get(top), "__file__", None) or ""
        return not {"site-packages", "dist-packages"} & set(PurePath(file).parts)

    def enters(self, module: ModuleType) -> bool:
        """:meth:`owns`, of a module itself."""
        return self.owns(module.__name__)

    def name_of(self, module: str) -> str:
        """How installed code is named: the module, and the version of its package if it says one."""
        version = getattr(sys.modules.get(top_of(module)), "__version__", "")
        return f"{module} {version}".strip()
