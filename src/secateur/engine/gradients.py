"""Gradients of the loss, their squares, and the diagonal of its Hessian, without touching .grad."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves, tree_map

from secateur.engine.batches import labelled, run, task_loss
from secateur.engine.ranks import mean_
from secateur.errors import DataError
from secateur.measure.calling import device_of, evaluating, to_device, unfused

TWICE = frozenset({"hessian", "hessian_weight"})  # what takes gradients of gradients


class Gradients:
    r"""Running means over batches; parameters that the loss does not depend on stay at zero.

    The Hessian's diagonal is Hutchinson's estimate $E[v \odot Hv]$, $v$ of random signs.
    """

    def __init__(
        self, parameters: Mapping[str, Tensor], needs: Collection[str], probes: int, seed: int
    ) -> None:
        self.names = list(parameters)
        self.tensors = list(parameters.values())
        self.needs = frozenset(needs)
        self.probes = probes
        self.generator = torch.Generator().manual_seed(seed)
        self.totals: dict[str, list[Tensor]] = {
            need: [torch.zeros_like(t, dtype=torch.float32) for t in self.tensors]
            for need in ("grad", "grad_sq", "hessian", "hessian_weight", "sample_grad_sq")
            if need in self.needs
        }
        self.batches = self.samples = 0

    @property
    def per_batch(self) -> bool:
        return bool(self.needs & {"grad", "grad_sq", *TWICE})

    def add_batch(self, grads: Sequence[Tensor | None]) -> None:
        """Count the gradients of one batch's loss, differentiable ones for what is in ``TWICE``."""
        self.batches += 1
        for k, g in enumerate(grads):
            if g is None:
                continue
            value = g.detach().float()
            if "grad" in self.totals:
                self.totals["grad"][k] += value
            if "grad_sq" in self.totals:
                self.totals["grad_sq"][k] += value.square()
        curved = [k for k, g in enumerate(grads) if g is not None and g.requires_grad]
        if not curved:
            return
        tensors = [self.tensors[k] for k in curved]
        if "hessian_weight" in self.totals:
            weights = [t.detach() for t in tensors]
            products = self._products(grads, curved, weights, again="hessian" in self.totals)
            for k, hv in zip(curved, products, strict=True):
                if hv is not None:
                    self.totals["hessian_weight"][k] += hv.float()
        for probe in range(self.probes if "hessian" in self.totals else 0):
            signs = [
                (torch.randint(0, 2, t.shape, generator=self.generator) * 2.0 - 1).to(t)
                for t in tensors
            ]
            products = self._products(grads, curved, signs, again=probe + 1 < self.probes)
            for k, v, hv in zip(curved, signs, products, strict=True):
                if hv is not None:
                    self.totals["hessian"][k] += (v * hv).float() / self.probes

    def _products(
        self,
        grads: Sequence[Tensor | None],
        curved: Sequence[int],
        vectors: Sequence[Tensor],
        again: bool,
    ) -> Sequence[Tensor | None]:
        """The Hessian times the vectors, one a curved parameter; ``again``: more are to follow."""
        return torch.autograd.grad(
            [g for k in curved if (g := grads[k]) is not None],
            [self.tensors[k] for k in curved],
            grad_outputs=vectors,
            retain_graph=again,
            allow_unused=True,
        )

    def add_sample(self, loss: Tensor) -> None:
        """Count the squared gradient of one sample's loss."""
        self.samples += 1
        grads = torch.autograd.grad(loss, self.tensors, allow_unused=True)
        for total, g in zip(self.totals["sample_grad_sq"], grads, strict=True):
            if g is not None:
                total += g.float().square()

    def result(self) -> dict[str, dict[str, Tensor]]:
        means = {}
        for need, totals in self.totals.items():
            count = max(self.samples if need == "sample_grad_sq" else self.batches, 1)
            means[need] = [t / count for t in totals]
            mean_(means[need], count)
        return {
            name: {need: of[k] for need, of in means.items()} for k, name in enumerate(self.names)
        }


@contextmanager
def differentiable(parameters: Iterable[Tensor]) -> Iterator[None]:
    """Let gradients reach the parameters, frozen ones too; their flags come back afterwards."""
    with _flagged(parameters, True):
        yield


@contextmanager
def frozen(parameters: Iterable[Tensor]) -> Iterator[None]:
    """Let no gradient reach the parameters; their flags come back afterwards."""
    with _flagged(parameters, False):
        yield


@contextmanager
def _flagged(parameters: Iterable[Tensor], flag: bool) -> Iterator[None]:
    before = [(p, p.requires_grad) for p in parameters]
    try:
        for p, _ in before:
            p.requires_grad_(flag)
        yield
    finally:
        for p, was in before:
            p.requires_grad_(was)


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Kernels with a second derivative: fused attention and cuDNN's recurrent ones have none."""
    with sdpa_kernel(SDPBackend.MATH), torch.backends.cudnn.flags(enabled=False):
        yield


def sample_gradients(
    model: nn.Module, batches: Iterable[Any], parameters: Mapping[str, Tensor]
) -> dict[str, list[Tensor]]:
    """The gradient of each sample's loss, by parameter; zero where the loss does not depend on it.

    Args:
        model: It runs in evaluation mode and stays as it is.
        batches: With a target or labels; ``input_ids`` alone are their own labels.
        parameters: Of which; laid out in memory as these are.

    Raises:
        DataError: No loss follows from a batch, or it is not finite.

    Example:
        >>> net = nn.Linear(1, 1, bias=False)
        >>> batch = (torch.tensor([[1.0], [2.0]]), net.weight.detach() * torch.zeros(2, 1))
        >>> w = float(net.weight)
        >>> one, two = sample_gradients(net, [batch], {"w": net.weight})["w"]
        >>> round(float(one) / w, 4), round(float(two) / w, 4)
        (2.0, 8.0)
    """
    found: dict[str, list[Tensor]] = {name: [] for name in parameters}
    device = device_of(model)
    tensors = list(parameters.values())
    with (
        evaluating(model),
        unfused(),
        frozen(model.parameters()),
        differentiable(tensors),
        torch.enable_grad(),
    ):
        for number, given in enumerate(batches):
            batch = labelled(model, to_device(given, device))
            size = batch_size(batch)
            for k in range(size):
                one = sample(batch, k, size)
                loss = task_loss(run(model, one), one)
                if not bool(loss.isfinite()):
                    raise DataError(
                        f"the loss is {float(loss)} on sample {k} of batch {number}: look for NaN "
                        "in the inputs or the weights"
                    )
                grads = (
                    torch.autograd.grad(loss, tensors, allow_unused=True)
                    if loss.requires_grad
                    else [None] * len(tensors)
                )
                for gradients, p, g in zip(found.values(), tensors, grads, strict=True):
                    kept = torch.zeros_like(p, dtype=torch.float32)
                    gradients.append(kept if g is None else kept.copy_(g))
    return found


def batch_size(batch: Any) -> int:
    """Samples in a batch: the first axis of its tensors; a batch in which it differs is one sample.

    A graph is such a batch: its nodes and edges cannot be taken apart.
    """
    leaves = tree_leaves(_plain(batch))
    sizes = {leaf.shape[0] for leaf in leaves if isinstance(leaf, Tensor) and leaf.dim()}
    return sizes.pop() if len(sizes) == 1 else 1


def sample(batch: Any, index: int, size: int) -> Any:
    """One sample of a batch, as a batch of one."""
    if size == 1:
        return batch

    def pick(leaf: Any) -> Any:
        return leaf[index : index + 1] if isinstance(leaf, Tensor) and leaf.dim() else leaf

    return tree_map(pick, _plain(batch))


def _plain(batch: Any) -> Any:
    return dict(batch) if isinstance(batch, Mapping) else batch
