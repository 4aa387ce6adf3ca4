"""Memory and time of tracing and planning a Llama of 7 billion parameters, without its weights.

python -m benchmarks.llm_memory        # in a child process; prints JSON
"""

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

SHAPE = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32000,
}


def measure(shape: dict[str, int]) -> dict[str, Any]:
    """Trace and plan in this process, whose peak memory includes torch and transformers."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    import secateur as sec

    torch.set_num_threads(1)
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**shape, use_cache=False)).eval()
        inputs = {"input_ids": torch.zeros(1, 16, dtype=torch.long)}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    graph = sec.trace(model, inputs)
    traced = time.process_time()
    plan = sec.plan(graph, amount=0.5, criterion="random")  # there are no weights to score
    planned = time.process_time()
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "trace_seconds": round(traced - start, 2),
        "plan_seconds": round(planned - traced, 2),
        "before_mb": before // 1024,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "classes_pruned": len(plan.removed),
    }


def child(shape: dict[str, int] = SHAPE) -> dict[str, Any]:
    """``measure`` in a new process, which has nothing else in memory."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.llm_memory", json.dumps(shape)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[1],
        env=os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
    )
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    print(json.dumps(measure(json.loads(sys.argv[1])) if len(sys.argv) > 1 else child()))
