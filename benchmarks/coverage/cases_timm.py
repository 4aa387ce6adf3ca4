"""The smallest model of every timm module, at the smallest image it takes.

Which model is smallest and which image fits is measured once and kept in ``timm_smallest.json``;
``python -m benchmarks.coverage.cases_timm`` measures again.
"""

import json
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import torch
from benchmarks.coverage.case import Built, Case

MEASURED = Path(__file__).with_name("timm_smallest.json")
SIDES = (65, 96, 128, 160, 224, 256, 384)


def cases() -> Iterator[Case]:
    """Yield one case a timm module, named after the model."""
    for entry in json.loads(MEASURED.read_text()).values():
        yield Case(
            set="timm",
            name=entry["model"],
            build=lambda entry=entry: build(entry["model"], entry["side"]),
            heavy=entry["parameters"] > 150e6,
        )


def build(name: str, side: int) -> Built:
    """Build a timm classifier with random weights and two images for it."""
    import timm

    return timm.create_model(name).eval(), (torch.randn(2, 3, side, side),), {}


def measure() -> dict[str, dict]:
    """Find the smallest model of each module (on meta tensors) and the smallest side it takes."""
    import timm
    from timm.models._registry import _model_to_module

    families = defaultdict(list)
    for name in timm.list_models():
        families[_model_to_module[name]].append(name)
    found = {}
    for family, names in sorted(families.items()):
        sizes = {}
        for name in names:
            with torch.device("meta"):
                try:
                    model = timm.create_model(name)
                except (NotImplementedError, RuntimeError):  # reads values while building
                    continue
            sizes[name] = sum(p.numel() for p in model.parameters())
        if not sizes:
            smallest = min(names, key=lambda n: parameters(timm.create_model(n)))
            sizes = {smallest: parameters(timm.create_model(smallest))}
        name = min(sizes, key=sizes.__getitem__)
        found[family] = {"model": name, "parameters": sizes[name], "side": smallest_side(name)}
        sys.stderr.write(f"{family}: {found[family]}\n")
    return found


def parameters(model: torch.nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in model.parameters())


def smallest_side(name: str) -> int:
    """First of ``SIDES`` at which the model runs and gives finite numbers."""
    import timm

    model = timm.create_model(name).eval()
    for side in SIDES:
        try:
            with torch.no_grad():
                out = model(torch.randn(2, 3, side, side))
        except Exception:  # noqa: BLE001 - any refusal means that this size does not fit
            continue
        if out.isfinite().all():
            return side
    raise RuntimeError(f"{name} runs at none of {SIDES}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    MEASURED.write_text(json.dumps(measure(), indent=1) + "\n")
