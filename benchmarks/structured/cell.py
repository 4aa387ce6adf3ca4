"""One cell: a method and a goal on SmolLM2-135M, in a process of its own.

python -m benchmarks.structured.cell '{"method": "shortgpt", "goal": {"amount": 0.2}}'
"""

import json
import sys
import time
from typing import Any

TOKENS = (16, 512)  # pieces of calibration and their length, where a cell says nothing else
HEALED = ("none", "fine-tune", "distil", "lora", "lora, distilling")  # after folding


def healing(name: str) -> list[Any]:
    """Folding, then an epoch of training: all weights or LoRA, with or without a teacher."""
    from secateur.recovery import Distil, FineTune, recovery

    def training(lr: float) -> dict[str, Any]:
        return {"optimizer": "adamw", "lr": lr, "schedule": "one-cycle", "progress": False}

    whole, thin = training(1e-4), training(1e-3)
    after = {
        "none": [],
        "fine-tune": [FineTune(**whole)],
        "distil": [Distil(base=FineTune(**whole))],
        "lora": [recovery("lora", base=FineTune(**thin))],
        "lora, distilling": [recovery("lora", base=Distil(base=FineTune(**thin)))],
    }
    return ["fold", *after[name]]


def measure(wanted: dict[str, Any]) -> dict[str, Any]:
    """Prune, judge by both held-out texts."""
    import torch
    from benchmarks.llm import material
    from benchmarks.llm.cell import Peak

    import secateur as sec
    from secateur.analyse import language

    torch.set_num_threads(1)
    tokenizer, wiki, model = material.tokenizer(), material.text("wiki"), material.model()
    cut = int(0.8 * len(wiki))
    number, length = wanted.get("tokens", TOKENS)
    pieces = language.calibration(
        tokenizer, wiki[:cut], number=number, length=length, seed=wanted.get("seed", 0)
    )
    cell: dict[str, Any] = dict(wanted)
    small = model
    if wanted["method"] != "dense":
        batches = [{"input_ids": ids, "labels": ids} for ids in pieces.ids.split(1)]
        for parameter in model.parameters():  # mapped files count only once they have been read
            parameter.sum()
        arguments = dict(wanted.get("arguments", {}))
        if "healed" in wanted:
            arguments["recovery"] = healing(wanted["healed"])
        began = time.process_time()
        with Peak() as peak:
            result = sec.prune(
                model,
                {"input_ids": pieces.ids[:1, :32]},
                method=(wanted["method"], wanted.get("options", {})),
                data=batches,
                measure=False,
                progress=False,
                **wanted["goal"],
                **arguments,
            )
        cell["seconds"] = round(time.process_time() - began, 1)
        cell["memory_mb"] = peak.megabytes
        proof, small = result.verification, result.model
        cell["proof"] = None if proof is None else {"ok": proof.ok, "error": proof.error}
        cell["dropped"] = [gap.module for gap in result.plan.dropped]
        cell["removed"] = sum(result.plan.removed.values())
    cell["parameters"] = sum(p.numel() for p in small.parameters())
    for name, windows in {
        "wiki": language.held_out(tokenizer, wiki[cut:], number=8, length=512),
        "web": language.held_out(tokenizer, material.text("c4"), number=4, length=512),
    }.items():
        cell[name] = round(language.perplexity(small, windows), 2)
    questions = language.cloze(tokenizer, material.text("c4"), number=40, context=16, ending=8)
    cell["choices"] = round(language.accuracy(small, questions), 4)
    return cell


if __name__ == "__main__":
    print(json.dumps(measure(json.loads(sys.argv[1]))))
