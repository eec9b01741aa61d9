"""Public fakes for tests of code that uses torch-piecewise."""

from torch_piecewise.cudagraphs.recorder import GraphRecorder as GraphRecorder
from torch_piecewise.cudagraphs.recorder import Recording as Recording
