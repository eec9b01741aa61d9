"""The ``cache`` verbs of the command line."""

from torch_piecewise.cache_cli.commands import cache

__all__ = ["cache"]
