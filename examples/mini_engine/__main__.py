"""Several prompts at once through SmolLM2 in pieces: ``python -m examples.mini_engine``."""

from __future__ import annotations

import time

import torch_piecewise as tp
from torch_piecewise.demo.text import Chat
from torch_piecewise.demo.weights import load_llama, model_folder

from .engine import Engine
from .model import PagedLlama, compile_model

PROMPTS = (
    "Why is the sky blue?",
    "Name three rivers in Europe.",
    "Write a haiku about autumn.",
    "What is the capital of Japan?",
    "Explain what a compiler does, in two sentences.",
    "How do I boil an egg?",
    "What is seven times eight?",
    "Tell me a short story about a fox.",
    "What do bees make?",
    "Translate 'good morning' into French.",
)


def main() -> None:
    folder = model_folder(say=print)
    chat = Chat.load(folder)
    theirs = load_llama(folder, capacity=1)
    model = PagedLlama(theirs.config, pages=256, page=16)
    model.load_state_dict(theirs.state_dict(), assign=True)
    compile_model(model, compile_ranges_endpoints=[8])
    warm = Engine(model, places=8)
    warm.add(chat.prompt("Hello"), 2)
    start = time.perf_counter()
    warm.run()
    print(f"ready in {time.perf_counter() - start:.1f} s; {tp.program_of(model).stats}\n")

    engine = Engine(model, places=8, stop=chat.stop)
    sequences = [engine.add(chat.prompt(prompt), 64) for prompt in PROMPTS]
    start = time.perf_counter()
    steps = engine.run()
    seconds = time.perf_counter() - start
    for prompt, one in zip(PROMPTS, sequences, strict=True):
        print(f"> {prompt}\n{chat.tokenizer.decode(one.made).strip()}\n")
    made = sum(len(one.made) for one in sequences)
    print(f"{made} tokens for {len(PROMPTS)} prompts in {steps} steps: {made / seconds:.1f} tokens/s")


if __name__ == "__main__":
    main()
