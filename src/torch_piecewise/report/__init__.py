"""A recorded run as a page, as JSON and as a Perfetto trace."""

from torch_piecewise.report.collect import Recording, collect
from torch_piecewise.report.facts import Report, Timed
from torch_piecewise.report.files import as_json, from_json, write

__all__ = ["Recording", "Report", "Timed", "as_json", "collect", "from_json", "write"]
