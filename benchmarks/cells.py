"""Cells of benchmarks that need a process of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
# The allocator of glibc keeps what was freed, more or less of it by chance, and it would be counted
# as used; what is at least this large is given back at once.
GIVEN_BACK = {"MALLOC_MMAP_THRESHOLD_": "1000000"}


def in_own_process(module: str, wanted: dict[str, Any]) -> dict[str, Any]:
    """What a module prints as JSON for a cell, from a process that has nothing else in memory.

    Raises:
        RuntimeError: It failed; with the end of what it wrote.
    """
    done = subprocess.run(
        [sys.executable, "-m", module, json.dumps(wanted)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | ONE_THREAD | GIVEN_BACK,
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    return json.loads(done.stdout.splitlines()[-1])
