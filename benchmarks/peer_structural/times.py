"""Seconds and memory of graph, plan and apply: each measurement in a process of its own.

python -m benchmarks.peer_structural.times swin_t secateur        # one measurement, as JSON
"""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from benchmarks.peer_structural.libraries import LIBRARIES, Clock, Inputs, output_layers
from benchmarks.peer_structural.store import append, load
from torch import nn

REPEATS = 3
SECONDS = 90  # of CPU time for one measurement, building the model included
VOCABULARY = 1000
Built = tuple[nn.Module, Inputs, dict[str, int]]
ROOT = Path(__file__).parents[2]


def image(name: str) -> Built:
    """A classifier of torchvision at 224 x 224, with the head counts of its attentions."""
    import torchvision

    model = torchvision.models.get_model(name, weights=None).eval()
    attention = nn.MultiheadAttention
    heads = {n: m.num_heads for n, m in model.named_modules() if isinstance(m, attention)}
    heads |= {
        f"{n}.qkv": m.num_heads
        for n, m in model.named_modules()
        if type(m).__name__.startswith("ShiftedWindowAttention")
    }
    return model, ((torch.randn(1, 3, 224, 224),), {}), heads


def llama(hidden: int, heads: int, kv_heads: int) -> Built:
    """24 layers of the Llama architecture of transformers."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=24,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=VOCABULARY,
        use_cache=False,
    )
    model = LlamaForCausalLM(config).eval()
    counts = {"q_proj": heads, "k_proj": kv_heads, "v_proj": kv_heads}
    named = {
        n: counts[n.rpartition(".")[2]]
        for n, _ in model.named_modules()
        if n.rpartition(".")[2] in counts
    }
    return model, ((), {"input_ids": torch.randint(0, VOCABULARY, (1, 16))}), named


MODELS: dict[str, tuple[str, Callable[[], Built]]] = {
    "resnet50": ("ResNet-50", lambda: image("resnet50")),
    "densenet201": ("DenseNet-201", lambda: image("densenet201")),
    "swin_t": ("Swin-T", lambda: image("swin_t")),
    "vit_l_16": ("ViT-L/16", lambda: image("vit_l_16")),
    "llama_256": ("Llama, 24 layers, width 256, 8 heads", lambda: llama(256, 8, 8)),
    "llama_256_gqa": ("the same, 2 key-value heads", lambda: llama(256, 8, 2)),
    "llama_1024": ("Llama, 24 layers, width 1024, 16 heads", lambda: llama(1024, 16, 16)),
}
RUNS = ("secateur", "torch-pruning", "torch-pruning, head counts given")
WITHOUT_HEADS = {"resnet50", "densenet201"}


def measure(name: str, run: str) -> dict[str, Any]:
    """One measurement: CPU and wall seconds, peak memory, and whether the pruned model runs."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    library, _, given = run.partition(",")
    small = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    LIBRARIES[library](small, ((torch.randn(2, 4),), {}), ["2"], Clock(), "l2")  # what loads once
    model, inputs, heads = MODELS[name][1]()
    outer = output_layers(model, inputs) if library != "secateur" else []
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    size = sum(p.numel() for p in model.parameters())
    clock, wall = Clock(), time.perf_counter()
    options = {"heads": heads} if given else {}
    LIBRARIES[library](model, inputs, outer, clock, "l2", **options)
    wall = time.perf_counter() - wall
    facts = {
        "cpu": {k: round(v, 3) for k, v in clock.seconds.items()},
        "wall": round(wall, 3),
        "built_mb": before // 1024,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "left": round(sum(p.numel() for p in model.parameters()) / size, 3),
    }
    try:
        with torch.no_grad():
            model.eval()(*inputs[0], **inputs[1])
        return facts | {"runs": True}
    except Exception as error:  # noqa: BLE001 - a forward that fails is the finding
        return facts | {"runs": False, "cause": f"{type(error).__name__}: {error}"[:160]}


def wanted() -> Iterator[tuple[str, str, int]]:
    """Every measurement, the libraries in turn."""
    for repeat in range(REPEATS):
        for name in MODELS:
            for run in RUNS:
                if run != RUNS[2] or name not in WITHOUT_HEADS:
                    yield name, run, repeat


def main(folder: Path) -> None:
    """Measure what is missing; what ran out of time once is not tried again."""
    rows = load("times", folder)
    done = {(r["model"], r["run"], r["repeat"]) for r in rows}
    failed = {(r["model"], r["run"]) for r in rows if "cpu" not in r}
    for name, run, repeat in wanted():
        if (name, run, repeat) in done or (name, run) in failed:
            continue
        row = {"model": name, "run": run, "repeat": repeat, **child(name, run)}
        if "cpu" not in row:
            failed.add((name, run))
        append("times", row, folder)
        sys.stderr.write(f"{row}\n")


def child(name: str, run: str) -> dict[str, Any]:
    """``measure`` in a new process with a limit of CPU time."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 5))

    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.peer_structural.times", name, run],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=environment,
        preexec_fn=limit,
    )
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    if done.returncode == -signal.SIGXCPU:
        return {"cause": f"not finished after {SECONDS} s of CPU time"}
    if done.returncode < 0:
        raise RuntimeError(f"the measurement of {name} was killed by signal {-done.returncode}")
    return {"cause": done.stderr.strip().splitlines()[-1][:160]}


if __name__ == "__main__":
    print(json.dumps(measure(*sys.argv[1:])))
