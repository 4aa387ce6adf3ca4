"""The life of an attachment: what happens before and after each of the optimizer's steps."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from secateur.engine import ranks
from secateur.engine.masks import MaskSet
from secateur.engine.seams import Moment
from secateur.granularity.choose import choose, keep_units, spared
from secateur.granularity.registry import Units
from secateur.methods.registry import Method
from secateur.methods.scoring import element_scores
from secateur.schedule.registry import Schedule
from secateur.training.exchange import exchange, require_scores
from secateur.training.factors import Factors
from secateur.training.gating import Gated
from secateur.training.guard import Guard, finite, unscale
from secateur.training.resume import restore, state_of
from secateur.training.validation import Stream

ATTACHED = "_secateur_attached"
# Parameters that an attachment acts on. Not an attribute of theirs, which copies and files of the
# model would inherit, though nothing acts on these.
MASKED: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


@dataclass(frozen=True)
class Sources:
    """What scores may be measured on.

    Attributes:
        data: Batches.
        loss: Of (output, target).
        seed: Of what is drawn.
        validation: Batches that a gate's auxiliaries are trained on, in place of the loop's own.
    """

    data: Iterable[Any] | None = None
    loss: Any = None
    seed: int = 0
    validation: Stream | None = None


@dataclass(repr=False)
class Handle:
    """An attachment of a method to a training run; ``finish()`` ends it.

    Attributes:
        method: What acts.
        moment: Where the run is, with its masks.
        notes: What a user should know.
        skipped: Steps that were skipped because a gradient was not finite.
    """

    method: Method
    moment: Moment
    units: Units
    schedule: Schedule | None
    sources: Sources
    allow_empty: bool = False
    scaler: Any = None
    gated: Gated | None = None
    notes: list[str] = field(default_factory=list)
    skipped: int = 0
    _skipping: bool = False
    _hooks: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._factors = Factors(self.moment)
        self._guard = Guard(self.moment.model)
        require_scores(self)

    # What users read.

    def __repr__(self) -> str:
        of = f" of {self.moment.steps}" if self.moment.steps else ""
        return f"Handle({self.method.name}, step {self.steps}{of}, {self.sparsity:.2%} masked)"

    @property
    def steps(self) -> int:
        """Steps that are over."""
        return self.moment.step

    @property
    def masks(self) -> MaskSet:
        """What stays now; of sharded parameters too, so that every rank must ask."""
        return MaskSet({n: ranks.whole(m) for n, m in self.moment.masks.items()})

    @property
    def sparsity(self) -> float:
        """Fraction of the weights that is masked now."""
        return self.masks.sparsity

    def obey(self) -> None:
        """Zero what is masked now, where masks act on weights; all ranks must have the same."""
        if self._enforced:
            self._follow_masks()
            self._factors.zero_weights()
        else:
            self._agree(self._factors.changed())

    # The two moments of every step.

    def before_step(self) -> None:
        """Penalties, masks that are due, and the gradients of what is masked."""
        moment = self.moment
        validation = self.sources.validation
        # Its own alone: what another optimizer holds is still scaled, and skipped, by itself.
        held = (p for group in moment.optimizer.param_groups for p in group["params"])
        weights = [p.grad for p in held if p.grad is not None]
        searching = unscale(moment.optimizer, weights)
        if self.gated is not None:
            self.gated.require_reached()
            if validation is not None:
                self.gated.validate(validation, self.sources.loss)
            self.gated.average(overflowing=self.scaler is not None)
        self._skipping = not finite([*weights, *(self.gated.gradients() if self.gated else ())])
        if self._skipping:
            self._skip(said=searching)
            return
        if self.gated is not None:
            self.gated.before_step(None if validation is not None else self.scaler)
        if self.method.penalty is not None:
            self.method.penalty.gradients(moment)
        if self.method.rule is not None:
            self.method.rule.before_step(moment)
        exchanged = not self.method.soft and self._update_masks(moment.step + 1)
        if exchanged:  # as in RigL: the step that moves connections updates no weight
            self._drop_gradients()
        elif self._enforced:
            self._follow_masks()
            self._factors.zero_gradients()
        elif self.method.soft and self._scheduled:
            self._factors.limit_gradients()
        if self.gated is not None and not self.gated.gate.trains_weights:
            for p in moment.parameters.values():
                p.grad = None

    @torch.no_grad()
    def after_step(self) -> None:
        """Shrinkage, zeros, and the auxiliaries' own step."""
        moment = self.moment
        if self._skipping:
            self._skipping = False
            if self.gated is not None:
                self.gated.after_step(skipped=True)
            return
        moment.step += 1
        if self.schedule is not None and self.gated is not None:  # masks: at their next look
            moment.amount = self.schedule.at(moment.progress)
        if self.method.penalty is not None:
            self.method.penalty.shrink(moment)
        if self.method.rule is not None:
            self.method.rule.after_step(moment)
        if self.method.soft:  # what is zeroed here trains on from the next step
            self._update_masks(moment.step)
        if self.gated is not None:
            self.gated.after_step(skipped=False)
            self.refresh_gate()
        self.obey()
        self._guard.keep()

    @property
    def _enforced(self) -> bool:
        return self.gated is None and not self.method.soft

    @property
    def _scheduled(self) -> bool:
        return self.schedule is not None and self.schedule.name != "one-shot"

    def _skip(self, said: bool) -> None:
        self.skipped += 1
        if self.skipped == 1 and not said:
            warnings.warn(
                f"step {self.moment.step}: a gradient is NaN or infinite; the step is skipped "
                "(handle.skipped counts them)",
                stacklevel=4,
            )
        self._drop_gradients()
        self._guard.restore()

    def _drop_gradients(self) -> None:
        for group in self.moment.optimizer.param_groups:
            for p in group["params"]:
                p.grad = None

    # Masks.

    @torch.no_grad()
    def enforce(self) -> None:
        """Zero what is masked, in the weights and in the optimizer's slots."""
        for name, mask in self.moment.masks.items():
            self.moment.clear(name, ~mask)

    def _follow_masks(self) -> None:
        """Where masks are new, zero weights and slots; all ranks must have the same."""
        changed = self._factors.changed()
        self._agree(changed)
        for name in changed:
            self.moment.clear(name, ~self.moment.masks[name])

    def _agree(self, changed: list[str]) -> None:
        masks = self.moment.masks  # shards are parts of what each rank has chosen whole
        if chosen := [n for n in changed if not ranks.sharded(masks[n])]:
            ranks.require_same(
                {f"the mask of {n}": masks[n] for n in chosen},
                "give every rank the same weights (wrap or seed the model before attaching), "
                "averaged gradients (DistributedDataParallel) and the same resume file",
                self.device,
            )

    def settle(self) -> None:
        """Take the model as it is now for the start of the next step."""
        self._factors = Factors(self.moment)
        self._guard.keep()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(iter(self.moment.parameters.values())).device

    @torch.no_grad()
    def _zero_weights(self) -> None:
        # Norms and biases of a unit stay until the end: with a zero scale above zero weights
        # neither would get a gradient, and the unit could not come back.
        for name, p in self.moment.parameters.items():
            if p.dim() > 1:
                p.mul_(self.moment.masks[name])

    def _update_masks(self, step: int) -> bool:
        """Change the masks where that is due; True if connections were exchanged."""
        moment, method = self.moment, self.method
        last = step == moment.steps
        if self.gated is not None or (step % method.every and not last):
            return False
        progress = min(step / max(moment.steps, 1), 1.0)
        if self._scheduled:
            assert self.schedule is not None
            amount = self.schedule.at(progress)
            if amount > moment.amount or (method.soft and amount > 0):
                self._prune(amount)
        if method.drop is None or method.grow is None:
            return False
        share = method.drop(progress)
        if share > 0:
            exchange(self, share)
        return share > 0

    def _prune(self, amount: float) -> None:
        moment = self.moment
        scores = self.score(self.method.criterion, self._gradients())
        if not self.method.revive and not self.method.soft:
            scores = self.below_masked(scores)
        moment.masks = self.chosen(scores, amount)
        moment.amount = amount
        if self.method.soft:
            self._zero_weights()

    def chosen(
        self, scores: Mapping[str, Tensor], amount: float, scope: Any = None
    ) -> dict[str, Tensor]:
        """The masks that these scores give, with whatever else a coupled unit has."""
        scope = self.method.scope if scope is None else scope
        masks = choose(scores, self.units, amount, scope, allow_empty=self.allow_empty)
        if not self.allow_empty and self.gated is None:  # a gate's masks are not final yet
            for name in spared(scores, masks, self.units, amount, scope):
                note = f"{name} would have lost all its weights: its best unit stays"
                self.notes += [] if note in self.notes else [note]
        return {
            n: ranks.like(masks[n].contiguous(), p)
            if n in masks
            else torch.ones_like(p, dtype=torch.bool)
            for n, p in self.moment.parameters.items()
        }

    def below_masked(self, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The scores with what is masked below all else."""
        masks = {n: ranks.whole(self.moment.masks[n]) for n in scores}
        return {n: s.masked_fill(~masks[n].expand_as(s), -torch.inf) for n, s in scores.items()}

    def score(self, criterion: Any, gradients: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        """Scores of all elements by a criterion, now."""
        with ranks.together():
            return element_scores(
                criterion,
                self.moment.model,
                {n: ranks.whole(p) for n, p in self.moment.parameters.items()},
                data=self.sources.data,
                loss=self.sources.loss,
                generator=self.moment.generator,
                gradients=gradients,
                seed=self.sources.seed + self.moment.step,
                units=self.units,
                initial=self.moment.part("initial"),
            )

    def _gradients(self) -> dict[str, Tensor]:
        return {
            n: ranks.whole(torch.zeros_like(p) if p.grad is None else p.grad.detach())
            for n, p in self.moment.parameters.items()
        }

    def refresh_gate(self) -> None:
        """Let the gate's masks follow its auxiliaries."""
        assert self.gated is not None
        moment, gate = self.moment, self.gated.gate
        scores = None if self.method.amount is None else self.gated.scores()
        if gate.shared:
            keep = (
                self.gated.keeps()
                if scores is None
                else keep_units(
                    scores,
                    self.units,
                    moment.amount,
                    self.method.scope,
                    allow_empty=self.allow_empty,
                )
            )
            moment.state.update({f"units.{n}": k.float() for n, k in keep.items()})
            moment.keep(keep)
        elif scores is None:
            moment.masks = self.gated.keeps()
        else:
            moment.masks = self.chosen(scores, moment.amount)

    # The end, and going on after a kill.

    def detach(self) -> None:
        """Take every hook away and leave the model as it is; the optimizer is free again."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        if self.gated is not None:
            self.gated.remove()
        self.moment.optimizer.__dict__.pop(ATTACHED, None)
        for p in self.moment.parameters.values():
            MASKED.pop(p, None)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the run needs to go on exactly; for ``save_state`` or ``torch.save``."""
        return state_of(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state_dict`` was taken.

        Attaching has already zeroed what the first masks do not keep: load the model's weights
        after that, or give ``state=`` to ``sec.attach`` instead.

        Raises:
            StoreError: The state is of another method or model, or damaged; nothing was changed.
            ConfigError: Ranks were given states of different steps.
        """
        restore(self, state)

    def finish(
        self,
        *,
        remove: bool = False,
        example_inputs: Any = None,
        averages: Iterable[nn.Module] = (),
    ) -> Any:
        """End the run: final masks, hardened weights, no hooks; with ``remove``, smaller tensors.

        Args:
            remove: Remove the channels that are zero altogether, and prove it.
            example_inputs: For ``remove``: what the model runs on.
            averages: Copies of the model, as the ``module`` of an ``AveragedModel``: their own
                weights are masked and hardened alike.

        Returns:
            A ``Sparse``: model, masks, plan and notes.

        Raises:
            ConfigError: ``remove`` without inputs.
            PlanError: An average is of another model.
        """
        from secateur.training.finish import finish

        return finish(self, remove, example_inputs, list(averages))
