"""``python -m benchmarks.coverage``: try every model, keep every finished result, write the page.

    python -m benchmarks.coverage                        # all sets, resuming
    python -m benchmarks.coverage --set timm --redo failed
    python -m benchmarks.coverage --only swin_t --redo all

Results are kept in ``benchmarks/coverage/results.jsonl``, one line a model (see ``store``).
"""

import argparse
import os
import subprocess
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

from benchmarks.needed import need

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "coverage.md"

os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"  # before torch is loaded


def main() -> None:
    """Parse the command line, run what is missing, write the page."""
    need("dev", "torchvision", "timm", "transformers")
    need("zoo", "psutil", "torch_geometric", "ultralytics")
    from benchmarks.coverage.case import SETS, cases
    from benchmarks.coverage.page import write
    from benchmarks.coverage.store import load

    parser = argparse.ArgumentParser(prog="python -m benchmarks.coverage", description=__doc__)
    parser.add_argument("--set", action="append", choices=list(SETS), help="repeatable")
    parser.add_argument("--only", action="append", metavar="NAME", help="repeatable")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--redo", choices=["all", "failed"], nargs="?", const="all")
    parser.add_argument("--seconds", type=float, default=240, help="CPU time for one model")
    parser.add_argument("--gigabytes", type=float, default=6, help="memory for one model")
    parser.add_argument("--no-page", action="store_true", help="leave docs/coverage.md alone")
    options = parser.parse_args()

    done = load()
    todo = []
    for case in cases(options.set, options.only):
        row = done.get((case.set, case.name))
        if row is None or options.redo == "all" or (options.redo and failed(row)):
            todo.append(case)
    if todo:
        run(todo, options.jobs, options.seconds, options.gigabytes)
    if not options.no_page:
        order = [(case.set, case.name) for case in cases()]
        results = load()
        write(PAGE, [results[key] for key in order if key in results], len(order))


def failed(row: dict[str, Any]) -> bool:
    """Whether anything about a model is not as it should be."""
    from benchmarks.coverage.cell import passed, statistical_ok

    return bool(row.get("cause")) or not passed(row) or not statistical_ok(row)


def run(todo: list[Any], jobs: int, seconds: float, gigabytes: float) -> None:
    """Run the cases in forked children, ``jobs`` at a time; heavy ones alone and at the end."""
    import torch
    from benchmarks.coverage.cell import passed, try_case
    from benchmarks.coverage.forked import Child
    from benchmarks.coverage.store import load, save

    warm_up({case.set for case in todo})
    torch.set_num_threads(1)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    queue = deque(sorted(todo, key=lambda case: case.heavy))
    running: list[tuple[Any, Child]] = []
    count = 0
    while queue or running:
        heavy = any(case.heavy for case, _ in running)
        while queue and len(running) < jobs and not heavy and not (queue[0].heavy and running):
            case = queue.popleft()
            heavy = case.heavy
            scale = 4 if case.heavy else 1
            running.append(
                (
                    case,
                    Child(
                        lambda send, case=case: try_case(case, send),
                        seconds * scale,
                        gigabytes * (2 if case.heavy else 1),
                    ),
                )
            )
        for entry in list(running):
            case, child = entry
            facts = child.poll()
            if facts is None:
                continue
            running.remove(entry)
            took = round(time.monotonic() - child.began, 2)
            if facts.get("stage") != "done" and not facts.get("cause"):
                facts["cause"] = f"{facts.get('stage')}: ended without a result"
            row = {"set": case.set, "name": case.name, "commit": commit, "seconds": took, **facts}
            save([*(load() | {(case.set, case.name): row}).values()])
            count += 1
            mark = "ok  " if passed(row) and not row.get("cause") else "FAIL"
            error = row.get("exact", {}).get("error")
            sys.stderr.write(
                f"{count}/{len(todo)} {mark} {case.set} {case.name} {took:.1f}s error={error} "
                f"{row.get('cause', '')[:200]}\n"
            )
        time.sleep(0.05)


def warm_up(sets: set[str]) -> None:
    """Load once what every child would load anew: the libraries, and the whole of secateur.

    Every child then runs the code of this moment, whatever is edited while the others run.
    """
    import torch

    import secateur as sec

    net = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2)).eval()
    plan = sec.plan(sec.trace(net, torch.zeros(2, 2)), amount=0.5, criterion="random")
    plan.verify(net)
    if "transformers" in sets:
        import transformers

        assert transformers.BertModel  # its modules, and what all models share, load on first use
        assert transformers.LlamaForCausalLM
    if "timm" in sets:
        import timm  # noqa: F401
    if "geometric" in sets:
        import torch_geometric.nn  # noqa: F401


if __name__ == "__main__":
    main()
