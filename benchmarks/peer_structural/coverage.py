"""Coverage without hints: every case through both libraries, judged by the same naive check."""

import copy
import json
import resource
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from benchmarks.coverage.case import SETS, Case, cases
from benchmarks.coverage.cell import parameters, summary
from benchmarks.coverage.forked import Child
from benchmarks.coverage.oracle import outputs
from benchmarks.coverage.randomise import randomise, settle
from benchmarks.peer_structural.judge import fill, judge, label
from benchmarks.peer_structural.libraries import LIBRARIES, Clock, output_layers, torch_pruning

SECONDS = 20  # of CPU time for graph, plan and apply together
GIGABYTES = 12  # the check itself holds the model several times, once in float64


def attempt(case: Case, library: str, report: Callable[[dict[str, Any]], None]) -> None:
    """Build a case, let a library remove half of it, run and judge what is left."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    clock = Clock(on_step=lambda step: report({"stage": step}))
    stage = "build"
    try:
        report({"stage": stage})
        dense, args, kwargs = case.build()
        randomise(dense)
        settle(dense, args, kwargs)
        outputs(dense, args, kwargs)
        report({"parameters": parameters(dense)})
        model = copy.deepcopy(dense)
        modes = {n: m.training for n, m in model.named_modules()}
        outer = output_layers(model, (args, kwargs)) if library != "secateur" else []
        stage = "prune"
        limit(SECONDS)
        try:
            said = LIBRARIES[library](model, (args, kwargs), outer, clock, "random", label)
        finally:
            stage = clock.step or "prune"
        limit(None)
        report({"seconds": {k: round(v, 3) for k, v in clock.seconds.items()}})
        stage = "forward"
        report({"stage": stage})
        places = fill(model, dense)
        for name, module in model.named_modules():
            module.training = modes.get(name, module.training)
        facts = said | judge(dense, model, places, args, kwargs) | {"stage": "done"}
        if facts["verdict"] == "wrong" and facts.get("announced") and facts["shapes"]:
            facts["verdict"] = "announced"
        report(facts)
    except Exception as error:  # noqa: BLE001 - any failure is this model's result
        limit(None)
        verdict = "invalid" if stage == "build" else "crash"
        text = traceback.format_exc()[-1500:]
        report({"verdict": verdict, "stage": stage, "cause": summary(error), "trace": text})


def limit(seconds: float | None) -> None:
    """Let the kernel end this process after so much more CPU time; None lifts the limit."""
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    soft = hard if seconds is None else int(time.process_time() + seconds + 1)
    resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))


def run(path: Path, sets: list[str] | None, only: list[str] | None, jobs: int = 1) -> None:
    """Try every missing (case, library), both libraries of a case after one another."""
    from benchmarks.coverage.__main__ import warm_up

    done = {(r["set"], r["name"], r["library"]) for r in load(path)}
    queue = deque(
        (case, library)
        for case in sorted(cases(sets or list(SETS), only), key=lambda c: c.heavy)
        for library in LIBRARIES
        if (case.set, case.name, library) not in done
    )
    total = len(queue)
    if queue:
        torch_pruning()
        warm_up({case.set for case, _ in queue})
    path.parent.mkdir(parents=True, exist_ok=True)
    running: list[tuple[Case, str, Child]] = []
    while queue or running:
        while queue and len(running) < jobs:
            case, library = queue.popleft()
            child = Child(
                lambda send, case=case, library=library: attempt(case, library, send),
                seconds=10 * SECONDS,
                gigabytes=GIGABYTES * (1.5 if case.heavy else 1),
            )
            running.append((case, library, child))
        for entry in list(running):
            case, library, child = entry
            facts = child.poll()
            if facts is None:
                continue
            running.remove(entry)
            row = {"set": case.set, "name": case.name, "library": library, **concluded(facts)}
            row.pop("trace", None)
            with path.open("a") as file:
                file.write(json.dumps(row) + "\n")
            sys.stderr.write(
                f"{total - len(queue) - len(running)}/{total} {library:13} {case.set} {case.name}: "
                f"{row['verdict']} {row.get('cause', '')[:120]}\n"
            )
        time.sleep(0.05)


def concluded(facts: dict[str, Any]) -> dict[str, Any]:
    """The facts with a verdict: a process that ended early ran out of time or memory, or died."""
    if "verdict" in facts:
        return facts
    cause = str(facts.get("cause", "ended without a result"))
    out_of_time = "SIGXCPU" in cause or "not finished" in cause
    return facts | {"verdict": "timeout" if out_of_time else "crash", "cause": cause}


def load(path: Path) -> list[dict[str, Any]]:
    """The newest result of every (set, name, library)."""
    rows: dict[tuple[str, str, str], dict[str, Any]] = {}
    if path.exists():
        for line in path.read_text().splitlines():
            row = json.loads(line)
            rows[row["set"], row["name"], row["library"]] = row
    return list(rows.values())
