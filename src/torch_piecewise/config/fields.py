"""Every setting, by theme: its default, what values it takes, and what it means."""

from __future__ import annotations

from dataclasses import dataclass

from torch_piecewise.config.fields_cutting import ProgramFields
from torch_piecewise.config.fields_graphs import GraphFields
from torch_piecewise.config.fields_keeping import FindingFields, InductorFields, KeepingFields
from torch_piecewise.config.fields_sizes import GuardFields, SizeFields


@dataclass(frozen=True, kw_only=True, repr=False)
class ConfigFields(
    # The last one's fields come first.
    FindingFields,
    KeepingFields,
    InductorFields,
    GraphFields,
    GuardFields,
    SizeFields,
    ProgramFields,
):
    """The fields of :class:`~torch_piecewise.config.Config`; each carries a ``Setting``."""


THEMES = tuple(reversed(ConfigFields.__bases__))
"""The classes of fields, in the order of the fields; the docstring of each is its title."""
