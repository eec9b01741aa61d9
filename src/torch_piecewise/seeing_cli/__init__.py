"""The verbs for looking: ``report``, ``explain``, ``doctor``."""

from torch_piecewise.seeing_cli.commands import doctor, explain, report

__all__ = ["doctor", "explain", "report"]
