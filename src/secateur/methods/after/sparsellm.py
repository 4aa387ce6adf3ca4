"""SparseLLM: prune the layers of an MLP together, its activations as variables between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from secateur.engine.gram import aimed
from secateur.engine.mlp import Mlp, bias_of, find_mlps, fitted, inputs_of
from secateur.engine.products import Layer
from secateur.engine.statistics import Stats
from secateur.engine.target import Solved, Solver, Target
from secateur.errors import ConfigError
from secateur.methods.after import sparsegpt
from secateur.methods.registry import Method, method


@method(stage="after", paper="arXiv:2402.17946")
def sparsellm(
    amount: float = 0.5,
    *,
    iterations: int = 4,
    coupling: float = 1.0,
    block: int = 128,
    damping: float = 0.01,
) -> Method:
    """SparseGPT, aiming at what alternates with the activations of each MLP; other layers as there.

    Args:
        amount: Fraction removed.
        iterations: How often activations are updated; 0 is SparseGPT.
        coupling: Weight of the activation's equation beside those of the layers.
        block, damping: SparseGPT's.

    Raises:
        ConfigError: Fewer than no iterations, or a coupling that is not positive.

    Example:
        >>> sorted(sparsellm(0.5).solver.needs)
        ['gram', 'inputs']
    """
    if iterations < 0 or coupling <= 0:
        raise ConfigError("sparsellm needs iterations >= 0 and coupling > 0")
    options = {"iterations": iterations, "coupling": coupling, "block": block, "damping": damping}
    needs, rowwise = frozenset({"gram", "inputs"}), frozenset({"pattern", "keep"})
    return Method(amount, solver=Solver(solve, needs, True, rowwise, options, aims))


def solve(
    weight: Tensor, stats: Stats, target: Target, *, block: int, damping: float, **_: Any
) -> Solved:
    """Prune one layer as SparseGPT does; what else is given belongs to ``aims``."""
    return sparsegpt.solve(weight, stats, target, block=block, damping=damping)


def aims(
    layers: Sequence[tuple[Layer, Stats]],
    parameters: Mapping[str, Tensor],
    target: Callable[[Layer], Target],
    *,
    iterations: int,
    coupling: float,
    block: int,
    damping: float,
) -> tuple[list[tuple[Layer, Stats]], list[str]]:
    r"""Give each layer of an MLP its last aim, and the Gram matrix of the input that it is for.

    Where there is no MLP, that is said. Minimizes over the pruned W and over z, s, p, in turn,
    $\lVert z - W_u x \rVert^2 + \lVert s - W_g x \rVert^2 + \lVert y - W_d p \rVert^2
    + \gamma \lVert p - f(s) z \rVert^2$, where y is the MLP's output before pruning.

    Args:
        layers: Of a block, with ``gram`` and ``inputs``.
        parameters: Of the block, by qualified name.
        target: What each layer is asked for.
        iterations, coupling, block, damping: The method's; coupling is $\gamma$.
    """
    found = dict[str, Stats]()
    for mlp in find_mlps(layers, parameters) if iterations else ():
        last = _alternate(mlp, parameters, target, iterations, coupling, block, damping)
        found |= {layer.name: stats for (layer, _), stats in zip(mlp.members, last, strict=True)}
    names = ", ".join(layer.name for layer, _ in layers)
    note = f"sparsellm found no MLP among {names}: these are pruned as by sparsegpt"
    solved = [(layer, found.get(layer.name, stats)) for layer, stats in layers]
    return solved, [note] if iterations and not found else []


@torch.no_grad()
def _alternate(
    mlp: Mlp,
    parameters: Mapping[str, Tensor],
    target: Callable[[Layer], Target],
    iterations: int,
    coupling: float,
    block: int,
    damping: float,
) -> list[Stats]:
    """The members' statistics with ``aim``."""
    now, outputs, f = [], [], mlp.activation
    inputs = [inputs_of(stats) for _, stats in mlp.members]
    biases = [bias_of(layer, parameters) for layer, _ in mlp.members]
    for (layer, stats), x in zip(mlp.members, inputs, strict=True):
        weight = layer.of(parameters[layer.parameter]).float()
        aim = aimed(weight, stats, damping) if "cross" in stats else weight.clone()
        now.append(Stats(stats.name, tokens=stats.tokens, gram=stats.gram, aim=aim))
        outputs.append(x @ aim.T)
    s, y = outputs[0] + biases[0], outputs[-1]
    z = outputs[1] + biases[1] if mlp.up is not None else torch.ones_like(s)
    for _ in range(iterations):
        pruned = [
            solve(stats.aim, stats, target(layer), block=block, damping=damping).weight
            for stats, (layer, _) in zip(now, mlp.members, strict=True)
        ]
        p = update_p(pruned[-1], y, f(s) * z, coupling)
        if mlp.up is not None:
            z = update_z(inputs[1] @ pruned[1].T + biases[1], f(s), p, coupling)
        s = update_s(s, inputs[0] @ pruned[0].T + biases[0], z, p, f, coupling)
        inputs[-1] = p
        wanted = [s - biases[0], *([z - biases[1]] if mlp.up is not None else []), y]
        now = [fitted(*each, damping) for each in zip(now, inputs, wanted, strict=True)]
    return now


def update_p(down: Tensor, y: Tensor, hidden: Tensor, coupling: float) -> Tensor:
    r"""$(W_d^\top W_d + \gamma I)^{-1} (W_d^\top y + \gamma f(s) z)$ for each token."""
    system = down.T @ down + coupling * torch.eye(down.shape[1]).to(down)
    return torch.cholesky_solve((y @ down + coupling * hidden).T, torch.linalg.cholesky(system)).T


def update_z(made: Tensor, gate: Tensor, p: Tensor, coupling: float) -> Tensor:
    r"""$(W_u x + \gamma f(s) p) / (1 + \gamma f(s)^2)$."""
    return (made + coupling * gate * p) / (1 + coupling * gate.square())


def update_s(s: Tensor, made: Tensor, z: Tensor, p: Tensor, f: Any, coupling: float) -> Tensor:
    r"""Lower $(s - W_g x)^2 + \gamma (p - f(s) z)^2$ by Gauss-Newton, where a step does."""
    for _ in range(5):
        with torch.enable_grad():
            at = s.detach().requires_grad_()
            value = f(at)
            (slope,) = torch.autograd.grad(value.sum(), at)
        miss, slope = p - value.detach() * z, slope * z
        step = (s - made - coupling * slope * miss) / (1 + coupling * slope.square())
        before = (s - made).square() + coupling * miss.square()
        after = (s - step - made).square() + coupling * (p - f(s - step) * z).square()
        s = torch.where(after < before, s - step, s)
    return s
