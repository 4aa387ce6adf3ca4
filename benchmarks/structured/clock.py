"""Wall clock of language models: reading a prompt, and writing one token after another."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

TOKENS = 64  # of the prompt, and in the cache while the next token is computed
BATCHES = (1, 8)
CASES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("wanda_sp", {"keep": {"params": 0.84}}),  # width: heads and neurons, as many in every block
    ("shortgpt", {"amount": 0.2}),  # depth: six blocks of thirty
)


def measured(method: str, goal: dict[str, Any]) -> dict[str, Any]:
    """A method on SmolLM2-135M; units are chosen on few tokens, as only their number matters here.

    Args:
        method, goal: One of ``CASES``.
    """
    import torch
    from benchmarks.llm import material

    import secateur as sec

    torch.set_num_threads(1)
    model = material.model()
    ids = torch.randint(5, 1000, (1, 64), generator=torch.Generator().manual_seed(0))
    small = sec.prune(
        model, {"input_ids": ids[:, :16]}, method=method, data=[{"input_ids": ids}], verify=False,
        measure=False, progress=False, **goal,
    ).model  # fmt: skip
    left = sum(p.numel() for p in small.parameters()) / sum(p.numel() for p in model.parameters())
    found = clock({"dense": model, "pruned": small})
    return {"method": method, "goal": goal, "left": round(left, 4), "clock": found}


def clock(models: dict[str, Any], repeats: int = 5) -> dict[str, dict[str, float]]:
    """Seconds of each model, medians of calls that are taken in turn.

    Args:
        models: By name; of transformers, with the same vocabulary.
        repeats: Timed calls of each, after one that is not.

    Returns:
        ``{"prefill 1": {name: seconds}, "decode 1": ..., "prefill 8": ..., "decode 8": ...}``;
        those of decode are for one token of every sequence.
    """
    import torch

    found: dict[str, dict[str, float]] = {}
    for batch in BATCHES:
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(5, 1000, (batch, TOKENS), generator=generator)
        with torch.inference_mode():
            reading = {name: _reading(model, ids) for name, model in models.items()}
            found[f"prefill {batch}"] = _in_turn(reading, repeats if batch == 1 else 3)
            writing = {name: _writing(model, ids) for name, model in models.items()}
            found[f"decode {batch}"] = _in_turn(writing, 3 * repeats)
    return found


def _reading(model: Any, ids: Any) -> Callable[[], Any]:
    return lambda: model(input_ids=ids, use_cache=True)


def _writing(model: Any, ids: Any) -> Callable[[], Any]:
    """One token behind a prompt that is in the cache; the cache is as before afterwards."""
    cache = model(input_ids=ids, use_cache=True).past_key_values
    last = ids[:, -1:]

    def step() -> None:
        model(input_ids=last, cache=cache, use_cache=True)
        cache.crop(-1)

    return step


def _in_turn(calls: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(repeats + 1):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            if number:
                seconds[name].append(time.perf_counter() - began)
    return {name: round(median(each), 5) for name, each in seconds.items()}
