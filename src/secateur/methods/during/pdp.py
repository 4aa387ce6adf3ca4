"""PDP: soft masks that follow from the weights alone, without a parameter of their own."""

from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.engine.masks import keep_top
from secateur.engine.seams import Auxiliaries, Gate, Moment, Tensors
from secateur.granularity.choose import choose
from secateur.granularity.registry import units
from secateur.methods.registry import Method, method
from secateur.schedule.registry import find


@dataclass(frozen=True)
class ParameterFree(Gate):
    r"""Forward $w\,m(w)$, $m = \sigma((w^2 - t^2)/\tau)$, $t$ between what stays and what goes."""

    temperature: float = 1e-4
    start: float = 0.15

    def auxiliaries(self, name: str, weight: Tensor, generator: torch.Generator) -> Tensors:
        return {"last": torch.tensor(weight.numel())}  # how many stay at the end; never trained

    def factor(self, weight: Tensor, aux: Tensors, mask: Tensor, moment: Moment) -> Tensor:
        if bool(mask.all()):
            return torch.ones_like(weight)
        size = weight.detach().float().abs()
        lowest = size.masked_fill(~mask, torch.inf).min()
        highest = size.masked_fill(mask, 0).max()
        middle = (lowest + highest) / 2 if bool(mask.any()) else highest
        return ((weight.float().square() - middle.square()) / self.temperature).sigmoid()

    def keeps(self, weight: Tensor, aux: Tensors, moment: Moment) -> Tensor:
        gone = (weight.numel() - int(aux["last"])) * moment.amount / (moment.target or 1)
        return keep_top(weight.abs(), weight.numel() - round(gone))

    def updated(self, aux: Auxiliaries, moment: Moment) -> None:
        decided = any(int(aux[n]["last"]) < p.numel() for n, p in moment.parameters.items())
        if decided or moment.progress < self.start:
            return
        sizes = {n: p.detach().abs() for n, p in moment.parameters.items()}
        for name, mask in choose(sizes, units("element", sizes), moment.target, "global").items():
            aux[name]["last"].fill_(int(mask.sum()))

    def harden(self, weight: Tensor, aux: Tensors, mask: Tensor, moment: Moment) -> Tensor:
        return weight * mask


@method(stage="during", paper="arXiv:2305.11203")
def pdp(
    amount: float = 0.9, *, temperature: float = 1e-4, start: float = 0.15, end: float = 0.75
) -> Method:
    r"""Parameter-free differentiable pruning: weights near the threshold feel what their mask does.

    After a warm-up one global ranking by magnitude says how many weights each layer will keep; the
    amount then grows linearly. In each layer $t$ lies halfway between the smallest weight that
    stays and the largest that goes. Through $w\,m(w)$ a weight gets the gradient times
    $m + \frac{2 w^2}{\tau} m (1 - m)$, which is largest at $|w| = t$. At the end masks are hard.

    Args:
        amount: Fraction removed at the end.
        temperature: $\tau$.
        start: Part of training that is warm-up.
        end: Part of training after which the amount no longer grows.

    Example:
        >>> pdp(0.9).gate.temperature
        0.0001

    Paper:
        Cho, Adya and Naik, NeurIPS 2023.
    """
    schedule = find("linear", amount, start=start, end=end)
    gate = ParameterFree(temperature=temperature, start=start)
    return Method(amount, criterion=None, schedule=schedule, gate=gate)
