"""``torch-piecewise demo``: a small real chat model, compiled in pieces and measured."""
