"""Prune a language model of 3 billion random parameters with 6 GiB of memory, killed in the middle.

python -m benchmarks.llm_streaming FOLDER    # 19 GB of disk; writes docs/streaming.md
                                             # --minutes 5: then stop; the next call goes on

The checkpoint is written shard by shard, so it is never in memory either. Every process below runs
with its data limited (RLIMIT_DATA: all private memory that can be written to, touched or not), and
its peak resident size is measured. The first is killed when half of the blocks are finished; a
second one makes the same call and goes on.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "streaming.md"
CELLS = Path(__file__).parent / "llm_streaming.json"
LIMIT = 6 * 2**30
SHAPE = {
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 28,
    "num_attention_heads": 24,
    "num_key_value_heads": 8,
    "vocab_size": 32000,
    "max_position_embeddings": 2048,
}
SHARD = 2_000_000_000  # bytes at most
CALIBRATION = (2, 64)  # samples, tokens
STAGES = {
    "killed": "first, killed with SIGKILL when half of the blocks were finished",
    "resumed": "second, goes on",
    "at_once": "all of it at once, to compare",
}


def write_checkpoint(folder: Path, shape: dict[str, int] = SHAPE, shard: int = SHARD) -> int:
    """A random Llama in bf16, one tensor at a time; the number of its parameters."""
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**shape, dtype="bfloat16"))
    shapes = {name: p.shape for name, p in model.named_parameters()}
    groups: list[list[str]] = [[]]
    size = 0
    for name, dims in shapes.items():
        size += 2 * dims.numel()
        if size > shard and groups[-1]:
            groups.append([])
            size = 2 * dims.numel()
        groups[-1].append(name)
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    index: dict[str, Any] = {"metadata": {}, "weight_map": {}}
    for number, names in enumerate(groups, 1):
        file = f"model-{number:05}-of-{len(groups):05}.safetensors"
        tensors = {}
        for name in names:
            value = torch.empty(shapes[name], dtype=torch.bfloat16)
            tensors[name] = (
                value.fill_(1)
                if len(shapes[name]) == 1
                else value.normal_(0, 0.02, generator=generator)
            )
            index["weight_map"][name] = file
        save_file(tensors, folder / file, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config = model.config
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    return sum(dims.numel() for dims in shapes.values())


def prune(dense: Path, out: Path, method: str) -> dict[str, Any]:
    """In this process."""
    import torch

    import secateur as sec

    torch.set_num_threads(1)
    vocabulary = json.loads((dense / "config.json").read_text())["vocab_size"]
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, vocabulary, CALIBRATION, generator=generator)
    start = time.perf_counter()
    result = sec.sparsify_folder(
        dense, out, method, amount=0.5, data=[{"input_ids": row[None]} for row in ids],
        dtype=torch.float32, spill=True, progress=False,
    )  # fmt: skip
    return {
        "seconds": round(time.perf_counter() - start),
        "cpu_seconds": round(time.process_time()),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "sparsity": result.report.sparsity,
        "blocks": len({row.block for row in result.report.rows}),
        "layers": len(result.report.rows),
    }


def whole(dense: Path) -> dict[str, Any]:
    """The same model loaded as usual."""
    import torch
    from transformers import AutoModelForCausalLM

    try:
        AutoModelForCausalLM.from_pretrained(dense, dtype=torch.float32)
    except (RuntimeError, MemoryError, OSError) as error:
        return {"error": str(error).split("\n")[0].partition(" from file")[0][:200]}
    return {"error": ""}


def child(*arguments: str, kill_after: int | None = None, watch: Path | None = None) -> Any:
    """Another process; killed, without a warning, when so many blocks are finished."""
    command = [sys.executable, "-m", "benchmarks.llm_streaming", *arguments]
    start = time.perf_counter()
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment
    ) as process:
        if kill_after is not None and watch is not None:
            peak = 0
            while process.poll() is None and len(finished(watch)) < kill_after:
                peak = max(peak, _peak_mb(process.pid))
                time.sleep(0.2)
            process.send_signal(signal.SIGKILL)
            process.wait()
            return {
                "seconds": round(time.perf_counter() - start),
                "peak_mb": peak,
                "blocks": len(finished(watch)),
                "killed": process.returncode == -signal.SIGKILL,
            }
        out, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"{command} ended with {process.returncode}")
    return json.loads(out.splitlines()[-1])


def finished(out: Path) -> list[Path]:
    """The files of blocks of a run that is not finished."""
    return sorted((out.with_name(f".{out.name}.unfinished") / ".progress").glob("block-*"))


def _peak_mb(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    found = re.search(r"VmHWM:\s+(\d+) kB", text)
    return int(found[1]) // 1024 if found else 0


def zeros(folder: Path) -> Iterator[tuple[str, float]]:
    """How much of each matrix of the blocks is zero, read from the written files."""
    from secateur.engine.shards import open_shards

    shards = open_shards(folder)
    for name, place in shards.places.items():
        if ".layers." in name and len(place.shape) == 2:
            yield name, float((shards.read(name) == 0).float().mean())


def stages(folder: Path) -> dict[str, Callable[[dict[str, Any]], dict[str, Any]]]:
    """What is done, in this order; each gives cells, and can be run without the ones before it."""
    dense, out, again = folder / "dense", folder / "pruned", folder / "pruned-at-once"
    call = ("prune", str(dense), str(out), "wanda")

    def write(_: dict[str, Any]) -> dict[str, Any]:
        shutil.rmtree(dense, ignore_errors=True)
        parameters = write_checkpoint(dense)
        files = list(dense.glob("*.safetensors"))
        size = sum(p.stat().st_size for p in files)
        return {"parameters": parameters, "bytes": size, "shards": len(files)}

    def kill(_: dict[str, Any]) -> dict[str, Any]:
        half = SHAPE["num_hidden_layers"] // 2
        return {"before": written(dense), "killed": child(*call, kill_after=half, watch=out)}

    def resume(_: dict[str, Any]) -> dict[str, Any]:
        from secateur.engine.checkpoint import load_state

        before = [row for path in finished(out) for row in load_state(path)["rows"]]
        cell = child(*call)
        after = json.loads((out / "sparsity.json").read_text())["rows"]
        kept = {row["block"] for row in after if row in before}  # with the seconds that each took
        return {"resumed": cell, "kept": len(kept)}

    def read(cells: dict[str, Any]) -> dict[str, Any]:
        found = list(dict(zeros(out)).values())
        untouched = cells.pop("before") == written(dense)
        return {"zeros": [min(found), max(found), len(found)], "source_untouched": untouched}

    def at_once(_: dict[str, Any]) -> dict[str, Any]:
        return {"at_once": child("prune", str(dense), str(again), "wanda")}

    def compare(_: dict[str, Any]) -> dict[str, Any]:
        return {"same_bits": hashes(out) == hashes(again)}

    return {
        "parameters": write,
        "whole": lambda _: {"whole": child("whole", str(dense))},
        "killed": kill,
        "resumed": resume,
        "zeros": read,
        "at_once": at_once,
        "same_bits": compare,
    }


def run(folder: Path, minutes: float) -> dict[str, Any]:
    """The stages that are not done yet, as far as time allows; the cells of all that are."""
    start = time.perf_counter()
    progress = folder / "cells.json"
    cells: dict[str, Any] = {"limit_bytes": LIMIT, "shape": SHAPE, "calibration": CALIBRATION}
    if progress.exists():
        cells = json.loads(progress.read_text())
    for name, stage in stages(folder).items():
        if name not in cells:
            cells |= stage(cells)
            progress.write_text(json.dumps(cells))
            if time.perf_counter() - start > 60 * minutes and name != "same_bits":
                return cells
    shutil.rmtree(folder)
    return cells


def written(folder: Path) -> dict[str, int]:
    """When each file was last written to."""
    return {path.name: path.stat().st_mtime_ns for path in sorted(folder.iterdir())}


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every safetensors file."""
    return {
        path.name: hashlib.file_digest(path.open("rb"), "sha256").hexdigest()
        for path in sorted(folder.glob("*.safetensors"))
    }


INTRODUCTION = """# Pruning a checkpoint that is larger than memory

```python
import torch
import secateur as sec

result = sec.sparsify_folder(
    "Llama-3.2-3B", "Llama-3.2-3B-half", "wanda", amount=0.5, data=batches, dtype=torch.float32
)
```

The source is a Hugging Face folder with safetensors files; the result has the same files, tensors
and types, with pruned weights, and beside them `masks.safetensors` and `sparsity.json`.
`from_pretrained` loads it. In memory are one block, what lies outside of the blocks (embeddings),
and the activations, which `spill=True` keeps on disk. A run that was killed goes on when the call
is made again. The tests hold, on tiny models, that a killed and resumed run gives the same bits as
one that was not killed, and as the same model pruned in memory.

Under `torchrun`, with `torch.distributed` initialized, the processes share the work of `sparsify`
and `sparsify_folder`: each runs a part of the calibration and solves a part of the rows or layers.

## Measured

"""


def page(cells: dict[str, Any]) -> str:
    """What docs/streaming.md says: of the stages that were run, and which were not."""
    samples, tokens = cells["calibration"]
    text = f"""`python -m benchmarks.llm_streaming FOLDER` writes a random Llama of \
{cells["parameters"] / 1e9:.2f} billion parameters to {cells["shards"]} files of bf16
({cells["bytes"] / 1e9:.1f} GB), and prunes half of each layer of its \
{cells["shape"]["num_hidden_layers"]} blocks with Wanda, computing in
float32, calibrated on {samples} x {tokens} tokens. Each process has its data limited to
{cells["limit_bytes"] / 2**30:.0f} GiB by RLIMIT_DATA: all private memory that can be written to, \
touched or not. One thread, one run, on two
cores that several other jobs used at the same time, so the seconds are upper bounds.

| process | seconds | peak resident MB | blocks finished |
|---|---|---|---|
"""
    for stage, name in STAGES.items():
        if stage in cells:
            cell = cells[stage]
            text += f"| {name} | {cell['seconds']} | {cell['peak_mb']} | {cell['blocks']} |\n"
    text += "\nLoading the whole model under the same limit ends with: "
    text += f"`{cells['whole']['error'] or 'success'}`.\n"
    if "kept" in cells:
        text += f"The second process did not redo {cells['kept']} of the blocks.\n"
    if "zeros" in cells:
        low, high, matrices = cells["zeros"]
        text += (
            f"In the files, {low:.2%} to {high:.2%} of each of the {matrices} matrices of the "
            "blocks is zero.\nThe files of the source were "
            f"{'not touched' if cells['source_untouched'] else 'changed'}.\n"
        )
    if "same_bits" in cells:
        text += f"The two results have {'the same' if cells['same_bits'] else 'different'} bits.\n"
    missing = [name for stage, name in STAGES.items() if stage not in cells]
    if missing:
        text += f"Not run at this size yet: {'; '.join(missing)}.\n"
    return INTRODUCTION + text


def main(arguments: list[str]) -> None:
    if arguments[0] in ("prune", "whole"):
        resource.setrlimit(resource.RLIMIT_DATA, (LIMIT, LIMIT))
    if arguments[0] == "prune":
        dense, out, method = arguments[1:]
        print(json.dumps(prune(Path(dense), Path(out), method)))
    elif arguments[0] == "whole":
        print(json.dumps(whole(Path(arguments[1]))))
    elif arguments[0] == "--page":
        PAGE.write_text(page(json.loads(CELLS.read_text())), encoding="utf-8")
    else:
        minutes = float(arguments[2]) if arguments[1:2] == ["--minutes"] else float("inf")
        cells = run(Path(arguments[0]), minutes)
        if "killed" in cells:
            cells.pop("before", None)
            CELLS.write_text(json.dumps(cells, indent=1) + "\n")
            PAGE.write_text(page(cells), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
