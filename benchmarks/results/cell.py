"""One cell of a table: prune a trained network of the zoo, prove it, heal it, measure it."""

import time
from dataclasses import asdict, dataclass
from functools import cache
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

import secateur as sec
from secateur import zoo
from secateur.environment import environment
from secateur.measure.calling import evaluating
from secateur.measure.latency import speedup
from secateur.recovery import BNRecalibrate, FineTune, LeastSquares, Recovery
from secateur.zoo.registry import network

CALIBRATION = 10  # batches for criteria, batch norms and least squares, drawn from the seed
EPOCHS = 2  # of fine-tuning, wherever the data set has many samples
STEPS = 60  # of fine-tuning where it is one graph
PEAK = 0.2  # learning rate of fine-tuning, as a part of the one that the network was trained with
TIMED = 16  # samples in the batch that is timed: short forwards are seldom interrupted
WARMUP, REPEATS = 5, 51  # forwards of it, in turn with the dense network


@dataclass(frozen=True)
class Cell:
    """Everything that decides the outcome of a cell but the machine.

    Args:
        network: name in the zoo.
        criterion: name of the criterion; with ``keep=1`` it decides nothing.
        keep: fraction of the MACs to keep; 1 is the dense network, for controls.
        seed: of the draws of criteria, of the calibration batches and of fine-tuning.
        scope: how much where.
        max_ratio: largest fraction of a class that may go; ``None`` is that of ``plan``.
        ignore: globs of what stays whole.
        normalizer: how scores of a class are scaled; ``None`` is the criterion's own.
        recovery: what is done after the removal, in turn: ``bn``, ``least-squares``, ``fine-tune``.
        fresh: draw new weights after the removal: the control that shows what they are worth.
        full: test on the whole test set, where there is a larger one than that of the package.
        limit: use so many samples only, for a test of this program; 0 is all.
    """

    network: str
    criterion: str
    keep: float
    seed: int = 0
    scope: str = "uniform"
    normalizer: str | None = None
    recovery: tuple[str, ...] = ("fine-tune",)
    fresh: bool = False
    full: bool = False
    limit: int = 0
    max_ratio: float | None = None
    ignore: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What the file of the cell is called; every field that is not the default is in it."""
        parts = [self.network, self.criterion, f"keep{self.keep:g}", self.scope]
        parts += [self.normalizer] if self.normalizer else []
        parts += [f"max{self.max_ratio:g}"] if self.max_ratio else []
        parts += ["without", *self.ignore] if self.ignore else []
        parts += ["fresh"] if self.fresh else []
        parts += ["+".join(self.recovery) or "none", f"seed{self.seed}"]
        parts += ["full"] if self.full else []
        parts += [f"limit{self.limit}"] if self.limit else []
        return "_".join(parts)

    def settings(self) -> dict[str, Any]:
        """The cell and the constants of this file: a finished cell counts if all are the same."""
        fields = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        return fields | {
            "calibration": CALIBRATION,
            "epochs": EPOCHS,
            "steps": STEPS,
            "peak": PEAK,
            "timed": [TIMED, REPEATS],
        }


def run(cell: Cell) -> dict[str, Any]:
    """Compute a cell.

    Returns:
        Numbers and strings only: ``settings``, ``accuracy`` (dense, pruned, healed), ``macs`` and
        ``parameters`` (dense and pruned), ``widths``, ``verification``, ``faster``, ``seconds``
        (of processor time, one thread), ``environment``.
    """
    start = time.process_time()
    torch.manual_seed(cell.seed)
    dense = zoo.load(cell.network)
    inputs = zoo.example_inputs(cell.network, TIMED)
    graph = sec.trace(dense, inputs)
    calibration = list(islice(_train(cell), CALIBRATION))
    traced = time.process_time()
    budget: dict[str, Any] = {"keep": {"macs": cell.keep}} if cell.keep < 1 else {"amount": 0.0}
    plan = sec.plan(
        graph,
        **budget,
        criterion=cell.criterion,
        scope=cell.scope,
        normalizer=cell.normalizer,
        max_ratio=cell.max_ratio,
        ignore=cell.ignore,
        data=calibration,
        seed=cell.seed,
    )
    planned = time.process_time()
    small = plan.apply(dense)
    proof = plan.verify(dense, small)
    if cell.fresh:
        _draw_again(small)
    proven = time.process_time()
    pruned = _accuracy(small, cell)
    healing = time.process_time()
    for name in cell.recovery:
        data = _train(cell) if name == "fine-tune" else calibration
        if name == "fine-tune":
            small.to(memory_format=torch.channels_last)  # convolutions train faster on a CPU
        _recovery(name, cell).heal(small, plan, data, dense)
    small.to(memory_format=torch.contiguous_format)
    healed_at = time.process_time()
    healed = _accuracy(small, cell) if cell.recovery else pruned
    cost = sec.measure(small, inputs, against=dense, repeats=0)
    against = cost.against
    assert against is not None
    sizes = {c.name: c.size for c in graph.free.values()}
    return {
        "settings": cell.settings(),
        "accuracy": {"dense": _dense(cell), "pruned": pruned, "healed": healed},
        "macs": {"dense": against.dense.macs, "pruned": cost.macs},
        "parameters": {"dense": against.dense.parameters, "pruned": cost.parameters},
        "widths": {n: [k, k - plan.removed.get(n, 0)] for n, k in sizes.items()},
        "verification": proof.to_dict(),
        "faster": _faster(dense, small, inputs),
        "seconds": {
            "trace": round(traced - start, 2),
            "plan": round(planned - traced, 2),
            "apply_and_verify": round(proven - planned, 2),
            "heal": round(healed_at - healing, 2),
            "total": round(time.process_time() - start, 2),
        },
        "notes": list(plan.notes),
        "environment": environment(),
    }


def _faster(dense: nn.Module, small: nn.Module, inputs: tuple[Tensor, ...]) -> dict[str, Any]:
    """Dense over pruned times of interleaved forwards: the medians, and p10 and p90 of the pairs.

    Once by the clock on the wall, and once by the processor time of the one thread, which does not
    count the waiting for other work on the machine.
    """
    models, found = (dense, small), {}
    with evaluating(*models):
        for name, clock in (("wall", time.perf_counter), ("processor", time.thread_time)):
            seconds: list[list[float]] = [[], []]
            for turn in range(WARMUP + REPEATS):
                for model, times in zip(models, seconds, strict=True):
                    start = clock()
                    model(*inputs)
                    if turn >= WARMUP:
                        times.append(clock() - start)
            found[name] = asdict(speedup(*seconds))
    return found


def _recovery(name: str, cell: Cell) -> Recovery:
    if name == "bn":
        return BNRecalibrate(batches=None)
    if name == "least-squares":
        return LeastSquares(batches=None)
    recipe = network(cell.network).RECIPE
    return FineTune(
        epochs=EPOCHS,
        steps=STEPS if len(_train(cell)) == 1 else None,
        lr=PEAK * recipe.lr,
        optimizer=recipe.optimizer,
        weight_decay=recipe.weight_decay,
        schedule="one-cycle",
        seed=cell.seed,
        progress=False,
    )


def _train(cell: Cell) -> Any:
    """The embedded training set, in the order of the cell's seed."""
    recipe = network(cell.network).RECIPE
    batches, _ = zoo.loaders(recipe.data, recipe.batch_size, cell.seed)
    if cell.limit:
        return list(islice(batches, max(cell.limit // recipe.batch_size, 1)))
    return batches


def _accuracy(model: nn.Module, cell: Cell) -> float:
    return zoo.evaluate(model, cell.network, full=cell.full, batch_size=250)


def _dense(cell: Cell) -> float:
    return _dense_accuracy(cell.network, cell.full)


@cache
def _dense_accuracy(name: str, full: bool) -> float:
    return zoo.evaluate(zoo.load(name), name, full=full, batch_size=250)


def _draw_again(model: nn.Module) -> None:
    """New weights, as each layer draws its own; torch is seeded by the caller."""
    for module in model.modules():
        reset = getattr(module, "reset_parameters", None)
        if callable(reset):
            reset()
