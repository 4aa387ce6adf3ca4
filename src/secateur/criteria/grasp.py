"""GraSP: keep what the flow of gradients needs, by a product of Hessian and gradient."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from secateur.criteria.registry import criterion
from secateur.engine.batches import require, run, take, task_loss
from secateur.engine.gradients import differentiable, twice_differentiable
from secateur.engine.order import epoch_batches, generators_kept
from secateur.engine.ranks import mean_
from secateur.errors import DataError
from secateur.measure.calling import describe, device_of, evaluating, to_device, unfused


@criterion(level="model", paper="arXiv:2002.07376")
def grasp(
    model: nn.Module,
    parameters: Mapping[str, Tensor],
    *,
    data: Iterable[Any] | None,
    loss: Any = None,
    generator: torch.Generator | None = None,
    temperature: float = 200.0,
    seed: int = 0,
) -> dict[str, Tensor]:
    r"""Score $S_i = \theta_i (Hg)_i$, signed: what has the lowest goes.

    The removal of $\theta$ changes $\lVert g \rVert^2$ by about $-2\,\theta^T H g$, so removing
    what has the largest $-\theta_i (Hg)_i$ hurts the flow of gradients least. $g$ is the mean over
    all batches, $Hg$ the mean over batches of the gradient of $\langle g, g_b(\theta) \rangle$.

    Args:
        model: Any; it is not changed, and runs in evaluation mode.
        parameters: What is scored, by name.
        data: Batches; they are read twice.
        loss: Of (output, target).
        generator: Not used.
        temperature: What the outputs are divided by, where they are one tensor: it softens the
            softmax, which would be saturated otherwise.
        seed: Of the order of a shuffling loader.

    Returns:
        Scores by name, of the parameters' shapes, float32, higher = keep.

    Raises:
        DataError: No data, data that can be read only once, or a loss that is not finite.

    Example:
        >>> net = nn.Linear(2, 1, bias=False)
        >>> with torch.no_grad(): _ = net.weight.copy_(torch.tensor([[1.0, -3.0]]))
        >>> named = dict(net.named_parameters())
        >>> half = lambda output, target: output.square().sum() / 2  # H = I for inputs of unit rows
        >>> data = [(torch.eye(2), None)]
        >>> grasp(net, named, data=data, loss=half, temperature=1.0)["weight"]
        tensor([[1., 9.]])
    """
    data = require(data, "criterion 'grasp'")
    tensors = list(parameters.values())

    def gradients(differentiated: bool) -> Iterator[tuple[Tensor | None, ...]]:
        for given in take(epoch_batches(data, seed, 0)):
            batch = to_device(given, device_of(model))
            output = run(model, batch)
            soft = output / temperature if isinstance(output, Tensor) else output
            value = task_loss(soft, batch, loss)
            if not value.isfinite():
                raise DataError(f"the loss is {value.item()} on a batch {describe(batch)}")
            yield torch.autograd.grad(
                value, tensors, create_graph=differentiated, allow_unused=True
            )

    g = [torch.zeros_like(t, dtype=torch.float32) for t in tensors]
    hg = [torch.zeros_like(t, dtype=torch.float32) for t in tensors]
    with (
        generators_kept(data),
        evaluating(model),
        unfused(),
        differentiable(tensors),
        twice_differentiable(),
        torch.enable_grad(),
    ):
        for count, found in enumerate(gradients(False), 1):
            _add(g, found, count)
        mean_(g, count)
        for count, found in enumerate(gradients(True), 1):
            z = [
                (mean * own.float()).sum()
                for mean, own in zip(g, found, strict=True)
                if own is not None and own.requires_grad
            ]
            if z:
                _add(
                    hg, torch.autograd.grad(torch.stack(z).sum(), tensors, allow_unused=True), count
                )
        mean_(hg, count)
    return {n: t.detach().float() * h for (n, t), h in zip(parameters.items(), hg, strict=True)}


def _add(means: list[Tensor], found: tuple[Tensor | None, ...], count: int) -> None:
    """Take one more batch into the running means."""
    for mean, value in zip(means, found, strict=True):
        mean.lerp_(torch.zeros_like(mean) if value is None else value.detach().float(), 1 / count)
