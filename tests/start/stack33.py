"""A start of a model of 33 pieces in a process of its own; prints what was counted, as JSON.

Arguments: the root. torch's own counters tell whether Dynamo or AOTAutograd ran.
"""

from __future__ import annotations

import json
import sys

import torch

import torch_piecewise as tp
from tests.graphs import Stack


def main() -> None:
    torch.manual_seed(0)
    model = Stack(32, width=8).eval()
    x = torch.randint(0, 50, (5,))
    with torch.no_grad():
        want = model(x)
        tp.compile(model, cache_dir=sys.argv[1], splitting_ops=["tests::attention"], compile_threads=1)
        difference = float((model(x) - want).abs().max())
    imported = "torch._dynamo" in sys.modules
    from torch._dynamo.utils import compilation_time_metrics, counters

    print(
        json.dumps(
            {
                "difference": difference,
                "imported": imported,
                "counts": tp.program_of(model).counters.as_dict(),
                "aot": dict(counters["aot_autograd"]),
                "frames": dict(counters["frames"]),
                "timed": sorted(compilation_time_metrics),
            }
        )
    )


if __name__ == "__main__":
    main()
