"""Knowledge distillation: the pruned model learns what the dense one says."""

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.engine.batches import (
    labelled,
    logits_of,
    require,
    require_teacher,
    run,
    target_of,
    task_loss,
)
from secateur.errors import ConfigError
from secateur.measure.calling import device_of, evaluating, to_device, unfused
from secateur.recovery.fine_tune import FineTune
from secateur.recovery.registry import member
from secateur.recovery.training import train


def distillation_loss(
    student: Tensor, teacher: Tensor, temperature: float, mask: Tensor | None = None
) -> Tensor:
    r"""$T^2 \cdot \mathrm{KL}\big(\mathrm{softmax}(z_t/T)\,\|\,\mathrm{softmax}(z_s/T)\big)$.

    Args:
        student: logits, classes on axis 1 for images ``(batch, classes, ...)`` of four or more
            axes, on the last otherwise.
        teacher: logits of the same shape.
        temperature: $T$.
        mask: which positions count, of the logits' shape without the classes; default all.

    Returns:
        The mean over all positions.
    """
    axis = 1 if student.dim() > 3 else -1
    log_s = F.log_softmax(student.float() / temperature, axis)
    log_t = F.log_softmax(teacher.float() / temperature, axis)
    divergence = (log_t.exp() * (log_t - log_s)).sum(axis)
    if mask is not None:
        divergence = divergence[mask.bool()]
    return temperature**2 * divergence.mean()


def similarity_loss(student: Tensor, teacher: Tensor) -> Tensor:
    r"""$\frac{1}{b^2}\lVert G_t - G_s\rVert_F^2$, $G$ the row-normalised $FF^\top$ of a batch.

    It compares how alike the samples of a batch are, so that pruned and dense features may differ
    in width. Paper: Tung & Mori, arXiv:1907.09682.
    """
    grams = []
    for features in (student, teacher):
        flat = features.float().flatten(1)
        grams.append(F.normalize(flat @ flat.T, dim=1))
    return (grams[0] - grams[1]).square().mean()


@member("distil")
@dataclass(frozen=True)
class Distil:
    r"""Fine-tune on $\alpha\,T^2\,\mathrm{KL}(p_t\|p_s) + (1-\alpha)\,L_\text{task}$.

    With ``alpha=1`` the data need no targets. ``base`` holds everything about training.

    Args:
        temperature: $T$; higher shows more of what the dense model thinks of the wrong classes.
        alpha: weight of the dense model's word against the targets', in [0, 1].
        features: names of modules whose outputs are compared too (``similarity_loss``).
        feature_weight: weight of that term, summed over ``features``.
        base: the training.

    Paper: Hinton, Vinyals & Dean, arXiv:1503.02531.
    """

    temperature: float = 4.0
    alpha: float = 0.9
    features: Sequence[str] | None = None
    feature_weight: float = 1000.0
    base: FineTune = FineTune()  # noqa: RUF009

    def heal(
        self,
        model: nn.Module,
        plan: Any = None,
        data: Iterable[Any] | None = None,
        teacher: nn.Module | None = None,
    ) -> dict[str, Any]:
        """Train ``model`` in place towards ``teacher``, which stays as it is.

        Raises:
            DataError: no teacher, no data, or outputs that cannot be compared.
            ConfigError: an option out of range, or unknown ``features``.

        Example:
            >>> model, dense, data = nn.Linear(4, 2), nn.Linear(4, 2), [torch.randn(8, 4)]
            >>> how = Distil(temperature=2.0, alpha=1.0, base=FineTune(progress=False))
            >>> how.heal(model, None, data, dense)["steps"]
            1
        """
        if not self.temperature > 0 or not 0 <= self.alpha <= 1:
            raise ConfigError(
                f"Distil(temperature={self.temperature}, alpha={self.alpha}): "
                "give a temperature above 0 and alpha in [0, 1]."
            )
        dense = require_teacher(teacher, model, "Distil")
        seen: dict[tuple[str, str], Tensor] = {}

        def loss_of(batch: Any) -> Tensor:
            if self.alpha < 1 and self.base.loss is None and self.base.forward is None:
                batch = labelled(model, batch)
            output = run(model, batch, self.base.forward)
            with torch.no_grad():
                wanted = run(dense, to_device(batch, device_of(dense)), self.base.forward)
            student = logits_of(output)
            target = logits_of(wanted).to(student.device)
            if student.shape != target.shape:
                raise ConfigError(
                    f"Distil: the model's logits have shape {list(student.shape)}, the teacher's "
                    f"{list(target.shape)}: give the dense model that this one was pruned from."
                )
            loss = self.alpha * distillation_loss(
                student, target, self.temperature, _mask(batch, student)
            )
            if self.alpha < 1:
                loss = loss + (1 - self.alpha) * task_loss(output, batch, self.base.loss)
            for name in self.features or ():
                if ("student", name) not in seen or ("teacher", name) not in seen:
                    raise ConfigError(f"Distil: {name!r} does not run in the forward; name others.")
                pair = seen["student", name], seen["teacher", name].to(student.device)
                loss = loss + self.feature_weight * similarity_loss(*pair)
            seen.clear()
            return loss

        with ExitStack() as hooks:
            hooks.enter_context(evaluating(dense))
            if self.features:
                hooks.enter_context(unfused())
            for role, network in (("student", model), ("teacher", dense)):
                for name in self.features or ():
                    hooks.callback(_watch(network, role, name, seen).remove)
            settings = {
                "temperature": self.temperature,
                "alpha": self.alpha,
                "features": list(self.features or ()),
                "feature_weight": self.feature_weight,
            }
            batches = require(data, "Distil")
            return train(model, batches, loss_of, self.base, "distil", plan, **settings)


def _watch(network: nn.Module, role: str, name: str, seen: dict[tuple[str, str], Tensor]) -> Any:
    try:
        module = network.get_submodule(name)
    except AttributeError as error:
        raise ConfigError(
            f"Distil(features=...): the {role} has no module {name!r}; "
            "model.named_modules() lists the names."
        ) from error

    def keep(_: nn.Module, __: Any, output: Any) -> None:
        seen[role, name] = logits_of(output)

    return module.register_forward_hook(keep)


def _mask(batch: Any, logits: Tensor) -> Tensor | None:
    """Padding of a Hugging Face batch, which is not to be learnt from."""
    target = target_of(batch)
    mask = target.get("attention_mask") if isinstance(target, dict) else None
    if isinstance(mask, Tensor) and mask.shape == logits.shape[:-1] and bool(mask.any()):
        return mask
    return None
