"""Discrimination: which inputs a layer needs to say the same and to tell classes apart."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.criteria.registry import criterion
from secateur.engine.batches import require, run, take, task_loss
from secateur.engine.greedy import greedy
from secateur.engine.heads import Head, head_loss, outputs_of, trained_heads
from secateur.engine.order import epoch_batches, generators_kept
from secateur.errors import ConfigError
from secateur.measure.calling import device_of, evaluating, to_device, unfused


@criterion(level="model", paper="arXiv:1810.11809")
def discrimination(
    model: nn.Module,
    parameters: Mapping[str, Tensor],
    *,
    data: Iterable[Any] | None,
    loss: Callable[..., Tensor] | None = None,
    generator: torch.Generator | None = None,
    losses: int = 3,
    weight: float = 1.0,
    refits: int = 1,
    lr: float = 0.01,
    epochs: int = 5,
    batches: int = 10,
    seed: int = 0,
) -> dict[str, Tensor]:
    r"""Score: how early an input channel is added to a layer that begins with none.

    $$L = \tfrac{1}{2Q}\lVert O - X W_A^\top \rVert^2 + \lambda L_p$$

    with O the dense layer's outputs, Q their number, A the channels added so far, and $L_p$ the
    loss of a classifier on the outputs of the next of ``losses`` evenly spaced layers; behind the
    last of them that of the model. The next channel is $\arg\max_{k \notin A} \lVert \partial L /
    \partial W_k \rVert_F$; it comes with its trained weights, then $W_A$ descends L. Layers of more
    than 64 inputs add several at once. The paper also trains the model with the losses first, and
    prunes layer after layer; here only the classifiers are trained, and the model stays dense.

    Args:
        model: A classifier, its output ``(batch, classes)``; it is not changed.
        parameters: What is scored, by name, of linear layers and ungrouped convolutions.
        data: Batches with targets.
        loss: Of (output, target).
        generator: Not used.
        losses: How many classifiers.
        weight: $\lambda$.
        refits, lr: Steps of gradient descent after each addition, and their rate.
        epochs: Passes over the data that train the classifiers.
        batches: How many are used at most.
        seed: Of the classifiers, and of the order of a shuffling loader.

    Returns:
        Scores by name, of the weights' shapes, float32; summed over a channel they are 1 for the
        first, ..., one over the number of channels for the last.

    Raises:
        ConfigError: An option out of range.
        DataError: No data, one sample a batch, or the model is no classifier.

    Example:
        >>> net = nn.Linear(2, 2)
        >>> with torch.no_grad(): _ = net.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 9.0]]))
        >>> data = [(torch.eye(2), torch.tensor([0, 1]))]
        >>> discrimination(net, {"weight": net.weight}, data=data, losses=0)["weight"].sum(0)
        tensor([0.5000, 1.0000])
    """
    if min(losses, refits, epochs, weight, batches - 1) < 0 or lr <= 0:
        raise ConfigError(
            f"criterion 'discrimination': losses={losses}, weight={weight}, refits={refits}, "
            f"lr={lr}, epochs={epochs}, batches={batches}: lr and batches must be positive, the "
            "others not negative"
        )
    source = require(data, "criterion 'discrimination'")
    copy = deepcopy(model).requires_grad_(False)
    layers = {n: m for n in parameters if (m := _layer(copy, n)) is not None}
    scores: dict[str, Tensor] = {}
    with generators_kept(source), evaluating(copy), unfused():
        drawn = take(epoch_batches(source, seed, 0), batches)
        given = [to_device(batch, device_of(copy)) for batch in drawn]
        with outputs_of(layers) as seen:
            run(copy, given[0])
        order = list(seen)
        at = [order[p * len(order) // (losses + 1)] for p in range(1, losses + 1) if order]
        watched = {name: layers[name] for name in at}
        heads = trained_heads(copy, watched, given, loss=loss, epochs=epochs, seed=seed)
        for place, name in enumerate(order):
            judge = next((n for n in heads if order.index(n) >= place), None)
            there = None if judge is None else (layers[judge], heads[judge])
            layer, start = layers[name], layers[name].weight.detach().clone()
            layer.weight.requires_grad_(True)
            entry = greedy(start, _gradient(copy, layer, there, given, loss, weight), refits, lr)
            layer.weight.requires_grad_(False).copy_(start)
            per = entry / (start.numel() / len(entry))
            scores[name] = per.view(1, -1, *[1] * (start.dim() - 2)).expand_as(start)
    return scores


def _gradient(
    model: nn.Module,
    layer: nn.Module,
    judge: tuple[nn.Module, Head] | None,
    given: Sequence[Any],
    loss: Callable[..., Tensor] | None,
    weight: float,
) -> Callable[[Tensor, int], Tensor]:
    """The gradient of the joint loss in the weights of a layer, on one batch after the other."""
    looked_at = {"layer": layer, **({"judge": judge[0]} if judge else {})}
    aims = []
    for batch in given:
        with outputs_of(looked_at) as seen:
            run(model, batch)
        aims.append([x.detach() for x in seen["layer"]])

    def gradient(values: Tensor, step: int) -> Tensor:
        layer.weight.data.copy_(values)  # type: ignore[operator]
        batch, aim = given[step % len(given)], aims[step % len(given)]
        with torch.enable_grad(), outputs_of(looked_at) as seen:
            output = run(model, batch)
            missed = [F.mse_loss(x, y) for x, y in zip(seen["layer"], aim, strict=True)]
            if judge is None:
                told = task_loss(output, batch, loss)
            else:
                told = head_loss(judge[1], seen["judge"], batch, loss)
            total = torch.stack(missed).mean() / 2 + weight * told
            return torch.autograd.grad(total, layer.weight)[0]  # type: ignore[arg-type]

    return gradient


def _layer(model: nn.Module, parameter: str) -> Any:
    """The layer whose inputs can be told apart, or None."""
    layer = model.get_submodule(parameter.rpartition(".")[0])
    dense = isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)
    return layer if dense and getattr(layer, "groups", 1) == 1 else None
