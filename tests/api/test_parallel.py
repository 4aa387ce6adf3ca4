"""Two processes prune one model: what one process makes of it, to rounding; and what goes wrong."""

import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_streaming import DATA, checkpoint, contents, die_in
from torch import distributed

import secateur as sec
from secateur.engine import layerwise
from secateur.engine.checkpoint import load_state, save_state
from secateur.engine.masks import MaskSet

HOW = {"data": DATA, "progress": False}


def two(function: Callable[[int], Any], folder: Path) -> list[Any]:
    """What the function gives in two processes that torch.distributed has joined.

    An error is given as a text; None is given by a process that was killed.
    """
    torch.set_num_threads(1)  # a forked process cannot use the threads of its parent
    folder.mkdir()
    children = []
    for rank in range(2):
        child = os.fork()
        if not child:
            try:
                take_part(function, folder, rank)
            except BaseException:  # noqa: BLE001 - a fork of the test runner must not go on
                traceback.print_exc()
            finally:
                os._exit(0)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    files = [folder / str(rank) for rank in range(2)]
    assert all(path.exists() or -signal.SIGKILL in codes for path in files)
    return [load_state(path)["made"] if path.exists() else None for path in files]


def two_anew(case: str, folder: Path) -> list[Any]:
    """The same of a case, without forks: those cannot use the threads of autograd."""
    folder.mkdir()
    words = [sys.executable, __file__, case, str(folder)]
    children = [subprocess.Popen([*words, str(rank)]) for rank in range(2)]
    assert [child.wait() for child in children] == [0, 0]
    return [load_state(folder / str(rank))["made"] for rank in range(2)]


def take_part(function: Callable[[int], Any], folder: Path, rank: int) -> None:
    meeting = f"file://{folder}/meeting"
    distributed.init_process_group("gloo", meeting, rank=rank, world_size=2)
    try:
        made = function(rank)
    except sec.SecateurError as error:
        made = f"{type(error).__name__}: {error}"
    save_state(folder / str(rank), {"made": made})
    distributed.barrier()


def pruned(model: Any, method: Any, **how: Any) -> dict[str, Any]:
    result = sec.sparsify(model, method, **{**HOW, **how})
    weights = {n: result.model.get_parameter(n).detach() for n in result.masks}
    rows = [[r.layer, r.removed, r.total, r.tokens] for r in result.report.rows]
    return {"masks": dict(result.masks), "weights": weights, "rows": rows}


CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "rows": ("llama", "wanda", {"amount": 0.5}),
    "layers": ("llama", "sparsegpt", {"amount": 0.5}),
    "rows of a pattern, one group after another": (
        "llama", "sparsegpt", {"pattern": "2:4", "true_sequential": True},
    ),
    "dense targets": ("llama", "reconstruct", {"amount": 0.5, "propagate": "both"}),
    "experts that one process never sees": ("mixtral", "wanda", {"amount": 0.5}),
    "gradients": ("llama", "woodfisher", {"amount": 0.5}),
    "tuning by gradients": ("llama", "wanda", {"amount": 0.5, "tune": 2}),
    "gradients in an MLP of experts that one process never sees": (
        "mixtral", "sparsellm", {"amount": 0.5},
    ),
    "no data": ("llama", "magnitude", {"amount": 0.5}),
}  # fmt: skip


def given(case: str, folder: Path) -> tuple[Any, Any, dict[str, Any]]:
    name, method, how = CASES[case]
    if name == "mixtral":  # few tokens
        how = {**how, "data": [{"input_ids": batch["input_ids"][:, :2]} for batch in DATA[:2]]}
    return checkpoint(folder / "dense", name), method, how


@pytest.mark.parametrize("case", CASES)
def test_two_processes_are_as_one(case: str, tmp_path: Path) -> None:
    model, method, how = given(case, tmp_path)
    if "gradients" in case:
        one, other = two_anew(case, tmp_path / "two")
    else:
        one, other = two(lambda _: pruned(model, method, **how), tmp_path / "two")
    alone = pruned(model, method, **how)
    assert one["rows"] == other["rows"] == alone["rows"]
    for key, mask in alone["masks"].items():
        assert torch.equal(one["masks"][key], other["masks"][key])
        assert torch.equal(one["weights"][key], other["weights"][key])
        assert float((one["masks"][key] == mask).float().mean()) > 0.99, key
        same = one["masks"][key] == mask
        torch.testing.assert_close(
            one["weights"][key] * same, alone["weights"][key] * same, rtol=1e-3, atol=1e-3
        )


def test_a_folder_is_pruned_by_two_and_goes_on_after_a_kill(tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "dense")
    dense, out, whole = (tmp_path / name for name in ("dense", "out", "whole"))
    how = {**HOW, "amount": 0.5, "spill": True}

    def killed(rank: int) -> None:
        if rank == 0:
            die_in(layerwise, "_solve_block", 2)
        else:
            signal.alarm(20)  # the other one is left waiting, and would be ended by torchrun
        sec.sparsify_folder(dense, out, "wanda", **how)

    def on(_: int) -> None:
        sec.sparsify_folder(dense, out, "wanda", **how)
        sec.sparsify_folder(dense, whole, "wanda", **how)

    assert two(killed, tmp_path / "first") == [None, None]
    assert not out.exists()
    assert two(on, tmp_path / "second") == [None, None]
    mine, theirs = contents(out), contents(whole)
    del mine["sparsity.json"], theirs["sparsity.json"]
    assert mine == theirs
    in_memory = two(lambda _: pruned(model, "wanda", amount=0.5)["masks"], tmp_path / "third")[0]
    assert MaskSet(in_memory) == MaskSet.load(out / "masks.safetensors")


def test_one_process_in_trouble_ends_both(tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "dense")

    def trouble(rank: int) -> Any:
        if rank:
            model.model.embed_tokens.weight.data.fill_(torch.nan)
        return pruned(model, "wanda", amount=0.5)

    one, other = two(trouble, tmp_path / "nan")
    assert "NaN" in other and one == other.replace("DataError: ", "DataError: process 1: ")

    def different(rank: int) -> Any:
        return pruned(model, "wanda", amount=0.5 + 0.1 * rank)

    assert all("another target" in said for said in two(different, tmp_path / "amounts"))
    few = two(lambda _: pruned(model, "wanda", amount=0.5, data=DATA[:1]), tmp_path / "few")
    assert all("1 calibration batches cannot be split over 2" in said for said in few)


if __name__ == "__main__":
    case, folder, rank = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    model, method, how = given(case, folder / f"of{rank}")
    take_part(lambda _: pruned(model, method, **how), folder, rank)
