"""The authors' own Wanda and SparseGPT on the same model and tokens, from copies that the user has.

Nothing of them is part of this project: ``WANDA`` and ``SPARSEGPT`` name folders of
https://github.com/locuslab/wanda and https://github.com/IST-DASLab/sparsegpt. Their classes for one
layer are used as they are. Their loops over blocks were written for older releases of transformers
and do not run with this one, so the walk is theirs in order (catch the inputs of a block, run it
with hooks, prune, run it again) with today's arguments of a block.
"""

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

FOLDERS = {"wanda": "WANDA", "sparsegpt": "SPARSEGPT"}


def available(method: str) -> bool:
    """Whether the user has named a folder with the authors' code."""
    return method in FOLDERS and FOLDERS[method] in os.environ


def module(method: str) -> ModuleType:
    """Their file with the class for one layer, imported from the user's folder."""
    folder = Path(os.environ[FOLDERS[method]])
    file = folder / ("lib/layerwrapper.py" if method == "wanda" else "sparsegpt.py")
    sys.path.insert(0, str(folder))  # sparsegpt.py imports quant.py beside it
    try:
        spec = importlib.util.spec_from_file_location(f"authors_{method}", file)
        assert spec is not None and spec.loader is not None
        found = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(found)
    finally:
        sys.path.remove(str(folder))
    # They wait for the GPU to be able to print times; without one there is nothing to wait for.
    torch.cuda.synchronize = lambda *_: None  # type: ignore[assignment]
    return found


@torch.no_grad()
def prune(
    model: Any,
    method: str,
    goal: dict[str, Any],
    batches: list[dict[str, Tensor]],
    propagate: str = "pruned",
) -> dict[str, Any]:
    """Prune in place as their scripts do; returns the fraction of zeros in the blocks' layers.

    With ``propagate="dense"`` the next block is given the outputs of before, which they do not do.
    """
    theirs = module(method)
    n, m = (int(x) for x in goal["pattern"].split(":")) if "pattern" in goal else (0, 0)
    amount = goal.get("amount", 0.0)
    caught = [_catch(model, batch) for batch in batches]
    zeros = total = 0
    for block in model.model.layers:
        layers = {k: v for k, v in block.named_modules() if isinstance(v, nn.Linear)}
        wrap = theirs.WrappedGPT if method == "wanda" else theirs.SparseGPT
        wrapped = {name: wrap(layer) for name, layer in layers.items()}
        handles = [
            layer.register_forward_hook(
                lambda _, x, y, one=wrapped[name]: one.add_batch(x[0].data, y.data)
            )
            for name, layer in layers.items()
        ]
        dense = [(_tensor(block(hidden, **kwargs)), kwargs) for hidden, kwargs in caught]
        for handle in handles:
            handle.remove()
        for name, layer in layers.items():
            if method == "wanda":
                _remove_lowest(layer, wrapped[name].scaler_row, amount, n, m)
            else:
                wrapped[name].fasterprune(amount, n, m, blocksize=128, percdamp=0.01)
                wrapped[name].free()
            zeros += int((layer.weight == 0).sum())
            total += layer.weight.numel()
        if propagate == "dense":
            caught = dense
            continue
        del dense
        caught = [(_tensor(block(hidden, **kwargs)), kwargs) for hidden, kwargs in caught]
    return {"sparsity": round(zeros / total, 5)}


def _remove_lowest(layer: nn.Linear, squares: Tensor, amount: float, n: int, m: int) -> None:
    """The mask as their paper defines it, on the statistics that their class gathered."""
    scores = layer.weight.data.abs() * squares.sqrt()
    if n:
        groups = scores.view(len(scores), -1, m)
        gone = torch.zeros_like(groups, dtype=torch.bool)
        gone.scatter_(2, groups.topk(n, dim=2, largest=False).indices, True)
        gone = gone.view_as(scores)
    else:
        order = scores.sort(dim=-1, stable=True).indices[:, : int(scores.shape[1] * amount)]
        gone = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, order, True)
    layer.weight.data[gone] = 0


class _CaughtError(Exception):
    pass


def _catch(model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Any]]:
    """What the first block is called with."""
    seen: list[tuple[Tensor, dict[str, Any]]] = []

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append((args[0], kwargs))
        raise _CaughtError

    handle = model.model.layers[0].register_forward_pre_hook(hook, with_kwargs=True)
    try:
        model(**batch, use_cache=False)
    except _CaughtError:
        pass
    finally:
        handle.remove()
    return seen[0]


def _tensor(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output
