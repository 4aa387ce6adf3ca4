"""Memory and time of tracing and planning a Llama of 7 billion parameters, without its weights.

python -m benchmarks.llm_memory        # in a child process; prints JSON
"""

import json
import resource
import sys
import time
from typing import Any

from benchmarks.cells import in_own_process

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
    return in_own_process("benchmarks.llm_memory", shape)


if __name__ == "__main__":
    print(json.dumps(measure(json.loads(sys.argv[1])) if len(sys.argv) > 1 else child()))
