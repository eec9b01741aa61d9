"""What the start-up tests run in a process of its own: compile a small stack, call it, say what happened.

Prints one line of JSON. Arguments: the root, then ``name=value`` settings (Python literals).
"""

from __future__ import annotations

import ast
import json
import logging
import sys
import threading
from typing import Any

import torch


def main() -> None:
    root, *given = sys.argv[1:]
    settings: dict[str, Any] = {k: ast.literal_eval(v) for k, _, v in (text.partition("=") for text in given)}
    threads = settings.pop("threads", 1)
    reasons: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: reasons.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("torch_piecewise").addHandler(handler)
    logging.getLogger("torch_piecewise").setLevel(logging.INFO)
    results: list[dict[str, Any]] = []
    workers = [
        threading.Thread(target=lambda: results.append(start(root, dict(settings)))) for _ in range(threads)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(results) == threads
    heavy = [name for name in ("torch._dynamo", "torch._inductor") if name in sys.modules]
    print(json.dumps({"results": results, "reasons": reasons, "heavy": heavy}))


def start(root: str, settings: dict[str, Any]) -> dict[str, Any]:
    import stack

    import torch_piecewise as tp

    torch.manual_seed(settings.pop("seed", 0))
    model = (
        stack.Stack(scale=settings.pop("scale", 1.5))
        .eval()
        .to(getattr(torch, settings.pop("dtype", "float32")))
    )
    reference = stack.Stack(scale=model.scale).eval().to(next(model.parameters()).dtype)
    reference.load_state_dict(model.state_dict())
    fields = {
        "dynamic_arg_dims": {"x": 0},
        "splitting_ops": ["start::attend"],
        "compile_sizes": [1],
    } | settings
    tp.compile(model, cache_dir=root, **fields)
    worst = 0.0
    with torch.no_grad():
        for size in (3, 1, 40):
            x = torch.randn(size, 8, dtype=next(model.parameters()).dtype)
            try:
                got = model(x)
            except tp.errors.MissError as error:
                return {"error": str(error)}
            worst = max(worst, float((got - reference(x)).abs().max()))
    handle = tp.program_of(model)
    return {"counts": handle.counters.as_dict(), "difference": worst}


if __name__ == "__main__":
    main()
