"""One cell: a method and a target on SmolLM2-135M, in a process of its own.

python -m benchmarks.llm.cell '{"method": "wanda", "target": "50%"}'    # prints JSON
"""

import hashlib
import json
import resource
import sys
import threading
import time
from pathlib import Path
from typing import Any

DENSE = "dense"
AUTHORS, AGAIN = "authors", "authors, samples reversed"
PROMPTS = (
    "The river Danube is",
    "Once upon a time, a little girl",
)


def goal(target: str) -> dict[str, Any]:
    """Arguments of ``sparsify``: ``50%`` is an amount, ``2:4`` a pattern."""
    if target.endswith("%"):
        return {"amount": float(target[:-1]) / 100}
    return {"pattern": target}


def texts(seed: int = 0) -> dict[str, Any]:
    """Calibration, both held-out corpora and the choice task: all pinned, none overlapping."""
    from benchmarks.llm import material

    from secateur import language

    tokenizer, wiki, web = material.tokenizer(), material.text("wiki"), material.text("c4")
    cut = int(0.8 * len(wiki))
    return {
        "calibration": language.calibration(
            tokenizer, wiki[:cut], number=16, length=512, seed=seed, source="wiki, first 80 %"
        ),
        "wiki": language.held_out(
            tokenizer, wiki[cut:], number=8, length=512, source="wiki, last 20 %"
        ),
        "web": language.held_out(tokenizer, web, number=4, length=512, source="c4"),
        "choices": language.cloze(tokenizer, web, number=40, context=16, ending=8, source="c4"),
    }


def evaluate(model: Any, given: dict[str, Any], dense: Any = None) -> dict[str, Any]:
    """Both perplexities and the choice task; with the dense model, also its text beside this."""
    from benchmarks.llm import material

    from secateur import language

    found: dict[str, Any] = {
        "wiki": round(language.perplexity(model, given["wiki"]), 3),
        "web": round(language.perplexity(model, given["web"]), 3),
        "choices": round(language.accuracy(model, given["choices"]), 4),
    }
    if dense is not None:
        both = {DENSE: dense, "pruned": model}
        found["text"] = language.continuations(both, material.tokenizer(), PROMPTS, tokens=30)
    return found


class Peak:
    """The most memory that this process held while it was active, beyond what it held before."""

    def __enter__(self) -> "Peak":
        self.before = self.most = _resident()
        self.done = threading.Event()
        self.watch = threading.Thread(target=self._look, daemon=True)
        self.watch.start()
        return self

    def _look(self) -> None:
        while not self.done.wait(0.02):
            self.most = max(self.most, _resident())

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.watch.join()

    @property
    def megabytes(self) -> int:
        return (self.most - self.before) // 2**20


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    return pages * resource.getpagesize()


def measure(wanted: dict[str, Any]) -> dict[str, Any]:
    """Prune, evaluate, report."""
    import torch
    from benchmarks.llm import authors, material

    import secateur as sec

    torch.set_num_threads(1)
    given, model = texts(wanted.get("seed", 0)), material.model()
    cell: dict[str, Any] = dict(wanted)
    dense = None
    if wanted["method"] != DENSE:
        batches = given["calibration"].batches()
        by = wanted.get("by")
        if by == AGAIN:  # the same sums in another order: what rounding alone changes
            batches.reverse()
        for parameter in model.parameters():  # mapped files count only once they have been read
            parameter.sum()
        began = time.process_time()
        with Peak() as peak:
            if by:
                zeros = authors.prune(
                    model, wanted["method"], goal(wanted["target"]), batches,
                    **wanted.get("arguments", {}),
                )  # fmt: skip
            else:
                method = None
                if wanted["method"] != "default":
                    method = (wanted["method"], wanted.get("options", {}))
                result = sec.sparsify(
                    model, method, **goal(wanted["target"]), **wanted.get("arguments", {}),
                    data=batches, inplace=True, progress=False,
                )  # fmt: skip
        if by:
            other = wanted | {"by": AUTHORS if by == AGAIN else None}
            cell |= zeros | {"agreement": agreement(model, _masks(other))}
            zeros_of(model).save(_masks(wanted))
        else:
            result.masks.save(_masks(wanted))
            cell["sparsity"] = round(result.report.sparsity, 5)
            cell["notes"] = list(result.report.notes)
        cell |= {"seconds": round(time.process_time() - began, 1), "memory_mb": peak.megabytes}
        dense = material.model() if wanted.get("sample") else None
    cell |= evaluate(model, given, dense)
    if wanted["method"] == DENSE:
        cell["records"] = {name: dict(part.record) for name, part in given.items()}
    return cell


def _masks(wanted: dict[str, Any]) -> Path:
    """Where the masks of a cell are kept, so that others can be compared with them."""
    from benchmarks.llm import material
    from benchmarks.llm.store import key

    folder = material.CACHE / "llm-masks"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{hashlib.sha256(key(wanted).encode()).hexdigest()[:16]}.safetensors"


def zeros_of(model: Any) -> Any:
    """The masks of the zeros in the weights of the blocks' linear layers."""
    from torch import nn

    from secateur import MaskSet

    layers = {
        f"{name}.weight": module.weight
        for name, module in model.model.layers.named_modules(prefix="model.layers")
        if isinstance(module, nn.Linear)
    }
    return MaskSet({name: weight.detach() != 0 for name, weight in layers.items()})


def agreement(model: Any, path: Path) -> float | None:
    """The share of all weights of which masks say what the zeros of a model say."""
    from secateur import MaskSet

    if not path.exists():
        return None
    masks = MaskSet.load(path)
    same = sum(int(((p != 0) == masks[n]).sum()) for n, p in model.named_parameters() if n in masks)
    return round(same / sum(masks[n].numel() for n in masks), 6)


if __name__ == "__main__":
    print(json.dumps(measure(json.loads(sys.argv[1]))))
