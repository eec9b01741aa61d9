"""``python -m torch_piecewise``: the command, where it is not installed."""

from __future__ import annotations

from torch_piecewise.cli import main

if __name__ == "__main__":
    main()
