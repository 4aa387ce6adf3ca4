"""What a run depends on besides its arguments: versions, machine, threads."""

import platform
from pathlib import Path

import torch


def environment() -> dict[str, str | int]:
    """Versions and machine, for the record of a run.

    Example:
        >>> environment()["threads"] >= 1
        True
    """
    from secateur import __version__

    return {
        "secateur": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "threads": torch.get_num_threads(),
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
