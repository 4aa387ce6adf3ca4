"""Fine-tuning: train the pruned model on, with any loader, and resume exactly after a kill."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from secateur.engine.batches import Forward, Loss, labelled, require, run, task_loss
from secateur.recovery.registry import member
from secateur.recovery.training import train


@member("fine-tune")
@dataclass(frozen=True)
class FineTune:
    """Train the pruned model for some epochs or steps; masks given as its plan are held.

    Data order: before epoch ``e`` the torch, Python and NumPy generators, and those of the loader
    and its sampler, are seeded from ``(seed, e)`` and ``set_epoch(e)`` is called where there is
    one. The order of an epoch is therefore a function of ``seed`` and ``e``: to resume in its
    middle, as many batches as were used are drawn and dropped, and then all generators are put back
    to where they were. With the same data, versions and threads the resumed run equals the
    uninterrupted one bit for bit. The caller's generators are given back as they were.

    Args:
        epochs: passes over the data.
        steps: batches in all; overrides ``epochs``.
        start: step at which to take the run up, as if the steps before it were done: the data
            order and the learning rates are those from there on.
        stop: step at which to end, with the learning rates of a run that goes on.
        lr: learning rate; ``None`` is 0.01 for sgd, 0.0005 for adamw, the callable's own otherwise.
        optimizer: ``"sgd"``, ``"adamw"`` or a callable ``(parameters[, lr=lr]) -> Optimizer``.
        momentum: of sgd.
        weight_decay: of sgd and adamw.
        schedule: ``"cosine"``, ``"one-cycle"``, ``"constant"`` or ``progress in [0, 1) -> factor``.
        amp: automatic mixed precision: float16 with loss scaling on CUDA, bfloat16 elsewhere.
        evaluate: ``model -> number``, higher is better; called after each epoch in evaluation mode.
        early_stop: stop after that many epochs without a better ``evaluate`` (without it: training
            loss), and give back the weights of the best epoch.
        checkpoint: folder for ``recovery.safetensors``; a run that was killed goes on from it.
        every: steps between checkpoints; one more is written after each epoch.
        loss: ``(output, target) -> scalar``; the target is the tuple's last element, or the dict.
        forward: ``(model, batch) -> output`` for batches that are neither tuples nor dicts.
        clip: largest norm of all gradients together.
        rescale_dropout: drop less where connections are gone: dropout modules behind a layer of
            which a fraction c is left get their rate times the root of c (arXiv:1506.02626).
        progress: show a bar with loss and time left (on standard error).
        seed: of the data order and of everything random in training.
    """

    epochs: int = 1
    steps: int | None = None
    start: int = 0
    stop: int | None = None
    lr: float | None = None
    optimizer: str | Callable[..., Optimizer] = "sgd"
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: str | Callable[[float], float] = "cosine"
    amp: bool = False
    evaluate: Callable[[nn.Module], float] | None = None
    early_stop: int | None = None
    checkpoint: str | Path | None = None
    every: int = 100
    loss: Loss | None = None
    forward: Forward | None = None
    clip: float | None = None
    rescale_dropout: bool = False
    progress: bool = True
    seed: int = 0

    def heal(
        self,
        model: nn.Module,
        plan: Any = None,
        data: Iterable[Any] | None = None,
        teacher: nn.Module | None = None,
    ) -> dict[str, Any]:
        """Train ``model`` in place and return the history.

        Raises:
            DataError: no data, batches that do not fit, weights or losses that are not finite.
            ConfigError: an unknown optimizer or schedule, or a number out of range.
            StoreError: the checkpoint is damaged, or of another model or other settings.

        Example:
            >>> data = [(torch.randn(8, 4), torch.zeros(8, dtype=torch.long))]
            >>> FineTune(epochs=2, progress=False).heal(nn.Linear(4, 2), data=data)["steps"]
            2
        """

        def loss_of(batch: Any) -> Tensor:
            if self.loss is None and self.forward is None:
                batch = labelled(model, batch)
            return task_loss(run(model, batch, self.forward), batch, self.loss)

        return train(model, require(data, "FineTune"), loss_of, self, "fine-tune", plan)
