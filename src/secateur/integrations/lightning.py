"""Lightning: a callback that attaches a method for a fit and resumes with its checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from secateur.errors import ConfigError, MissingExtraError
from secateur.training.attach import attach
from secateur.training.handle import Handle

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ModuleNotFoundError as error:
    raise MissingExtraError("the callback for Lightning", "lightning", error.name) from error


class Attachment(Callback):
    """``sec.attach`` for a Lightning run, whose checkpoints then hold the attachment's state.

    Without checkpoints nothing of this is needed: ``sec.attach(self, optimizer, ...)`` in
    ``configure_optimizers`` does the same.

    Args:
        method: See ``sec.attach``.
        options: Of ``sec.attach``; ``steps`` is by default what the trainer estimates.

    Attributes:
        handle: While fitting.
        result: What ``handle.finish()`` gave, after it.

    Raises:
        ConfigError: The module has several optimizers.

    Example:
        >>> callback = Attachment("rigl", amount=0.9, every=100)
        >>> trainer = Trainer(callbacks=[callback])
    """

    def __init__(self, method: Any, **options: Any) -> None:
        self.method, self.options = method, options
        self.handle: Handle | None = None
        self.result: Any = None
        self._stored: Mapping[str, Any] | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if len(trainer.optimizers) != 1:
            raise ConfigError(
                f"{type(pl_module).__name__} has {len(trainer.optimizers)} optimizers: attach to "
                "one of them in configure_optimizers"
            )
        steps = {"steps": int(trainer.estimated_stepping_batches), **self.options}
        self.handle = attach(
            pl_module, trainer.optimizers[0], self.method, state=self._stored, **steps
        )
        self._stored = None

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.handle is not None:
            self.result = self.handle.finish()
            self.handle = None

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        if self.handle is not None:
            self.handle.detach()
            self.handle = None

    def state_dict(self) -> dict[str, Any]:
        return {} if self.handle is None else self.handle.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._stored = state_dict or None  # read before there is an optimizer to attach to
