"""A plugin of pytest: runs tests with one field of ``Config`` ignored, named by ``IGNORED_FIELD``.

What was given for it is checked and then forgotten, as if nothing read it.
"""

from __future__ import annotations

import os

from torch_piecewise.config import Config
from torch_piecewise.config.fields import ConfigFields

_FIELD = os.environ["IGNORED_FIELD"]
_DEFAULT = ConfigFields.__dataclass_fields__[_FIELD].default
_checked = Config.__post_init__


def _forgets(self: Config) -> None:
    _checked(self)
    object.__setattr__(self, _FIELD, _DEFAULT)


Config.__post_init__ = _forgets  # type: ignore[method-assign]
