"""Gated weights: the forward of a layer sees a function of its weight, under the weight's name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor, nn

from secateur.engine import ranks
from secateur.engine.batches import run, task_loss
from secateur.engine.seams import Auxiliaries, Gate, Moment
from secateur.errors import ConfigError
from secateur.granularity.registry import Units
from secateur.training.guard import finite
from secateur.training.places import Place, places
from secateur.training.validation import Stream, frozen_statistics
from secateur.training.watch import Watch

Kind = tuple[bool, bool, bool]  # of a forward: in training, of a validation batch, with gradients


class Gated:
    """Puts a gate before the weights of a model while attached.

    While a layer runs, the gated weight stands in the instance's own dictionary, where Python looks
    before ``nn.Module`` looks among its parameters; afterwards it is gone. So parameters, names,
    state dicts and copies are those of the plain model.

    What is random is drawn once an optimizer's step, and once for its validation batch: all modules
    see the same draw, outside of the root's forward and in a forward that a checkpoint runs again
    too. So several forwards of one step, as where gradients are accumulated, share it.
    """

    def __init__(self, gate: Gate, units: Units, moment: Moment, scaler: Any = None) -> None:
        self.gate, self.units, self.moment = gate, units, moment
        parameters = moment.parameters
        self.aux: Auxiliaries = {}
        if gate.shared:
            device = next(iter(parameters.values())).device
            for space, count in units.counts.items():
                ones = torch.ones(count, device=device)
                self.aux[space] = gate.auxiliaries(space, ones, moment.generator)
        else:
            for name, p in parameters.items():
                self.aux[name] = gate.auxiliaries(name, p.detach(), moment.generator)
        self.aux = {
            n: {k: t.detach().clone().requires_grad_(t.is_floating_point()) for k, t in of.items()}
            for n, of in self.aux.items()
        }
        trained = [t for of in self.aux.values() for t in of.values() if t.requires_grad]
        self.optimizer: torch.optim.Optimizer | None = None
        self._followed: list[nn.Parameter] = []  # whose rate each group has, where lr is None
        if trained:
            kinds: Mapping[str, Any] = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}
            if gate.lr is None:
                self.optimizer = kinds[gate.optimizer](self._groups(), lr=0.0)
                self._follow()
            else:
                self.optimizer = kinds[gate.optimizer](trained, lr=gate.lr)
        self.handles: list[Any] = []
        self.awake = True  # hooks on copies of the model cannot be taken away
        self._now: dict[Kind, dict[str, Tensor]] = {}  # of shared gates, by kind of forward
        self._running: Kind | None = None
        self._reentrant = False
        self._unproven = {
            n for n, of in self.aux.items() if any(t.requires_grad for t in of.values())
        }
        self._watch = Watch(parameters.values() if trained else (), trained, scaler)
        self._place()

    def _groups(self) -> list[dict[str, Any]]:
        """The auxiliaries by the user's group of the weight that each belongs to."""
        groups = self.moment.optimizer.param_groups
        group_of = {id(p): i for i, group in enumerate(groups) for p in group["params"]}
        found: dict[int, dict[str, Any]] = {}
        for name, of in self.aux.items():
            weight = self._weight_of(name)
            number = group_of.get(id(weight), 0)
            if number not in found:
                found[number] = {"params": []}
                self._followed.append(weight)
            found[number]["params"] += [t for t in of.values() if t.requires_grad]
        return list(found.values())

    def _weight_of(self, name: str) -> nn.Parameter:
        """The parameter that an auxiliary belongs to; of a unit, the first with several rows."""
        if not self.gate.shared:
            return self.moment.parameters[name]
        parameters = dict(self.moment.model.named_parameters(remove_duplicate=False))
        spread = self.units.spread({name: torch.ones(self.units.counts[name])})
        own = [parameters[n] for n in spread]
        return next((p for p in own if p.dim() > 1), own[0])

    def _follow(self) -> None:
        """Give each group of auxiliaries the rate that its weights have now."""
        if self.optimizer is not None and self.gate.lr is None:
            for group, weight in zip(self.optimizer.param_groups, self._followed, strict=True):
                group["lr"] = self.moment.rate(weight)

    def _place(self) -> None:
        model = self.moment.model
        if self.gate.shared:
            begin, end = self._around()
            self.handles.append(model.register_forward_pre_hook(begin))
            self.handles.append(model.register_forward_hook(end, always_call=True))
        modules = dict(model.named_modules(remove_duplicate=False))
        for owner, read in places(model, self.gated()).items():
            module = modules[owner]
            if isinstance(module, nn.RNNBase):
                raise ConfigError(
                    f"{owner}: torch's {type(module).__name__} reads its weights where no gate can "
                    "stand; leave it out with ignore=, or use a method that masks"
                )
            self.handles.append(module.register_forward_pre_hook(self._shadow(read)))
            self.handles.append(
                module.register_forward_hook(self._unshadow(read), always_call=True)
            )

    def gated(self) -> list[str]:
        """Names of the parameters that the forward sees through the gate."""
        if not self.gate.shared:
            return list(self.moment.parameters)
        return list(self.units.spread({n: torch.ones(k) for n, k in self.units.counts.items()}))

    def effective(
        self, names: list[str], named: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """What the forward sees of these parameters, or of a copy's by their names."""
        if named is None:
            named = dict(self.moment.model.named_parameters(remove_duplicate=False))
        if not self.gate.shared:
            found = {}
            for n in names:
                with self._draw(n):
                    found[n] = self.gate.forward(
                        named[n], self.aux[n], self.moment.masks[n], self.moment
                    )
            return found
        kept = self._kept()
        factors = self.units.spread(self.factors()) if kept is None else kept
        return {n: named[n] * factors[n].to(named[n].dtype) for n in names if n in factors}

    def _around(self) -> tuple[Any, Any]:
        def begin(*_: Any) -> None:
            if self.awake:
                self._running = self._kind()
                self._now[self._running] = self.units.spread(self.factors())

        def end(*_: Any) -> None:
            self._running = None

        return begin, end  # functions: a bound method would be copied together with its object

    def _kind(self) -> Kind:
        return self.moment.model.training, self.moment.validating, torch.is_grad_enabled()

    def _kept(self) -> dict[str, Tensor] | None:
        """The factors of the root's forward, while it runs or a checkpoint runs a part again.

        A checkpoint has to find the graph that it knows; a reentrant one, whose first forward has
        no gradients, makes one of its own.
        """
        if self._running is not None:
            self._reentrant |= self._running[2] and not torch.is_grad_enabled()
            return self._now[self._running]
        if self._reentrant or torch.compiler.is_compiling():
            return None
        backward = torch._C._current_graph_task_id() >= 0
        return self._now.get(self._kind()) if backward else None

    @contextmanager
    def _draw(self, name: str) -> Iterator[None]:
        """Whatever is drawn for these auxiliaries is the same until the step is over."""
        moment = self.moment
        own = moment.generator
        if self.gate.random:
            key = (own.initial_seed(), moment.step, moment.validating, name)
            seed = int.from_bytes(sha256(repr(key).encode()).digest()[:7], "big")
            moment.generator = torch.Generator().manual_seed(seed)
        try:
            yield
        finally:
            moment.generator = own

    def factors(self) -> dict[str, Tensor]:
        """The factor of each unit, by space (of a shared gate)."""
        found = {}
        for space, aux in self.aux.items():
            ones = torch.ones(self.units.counts[space], device=_device(aux))
            mask = self.moment.state.get(f"units.{space}", ones).bool()
            with self._draw(space):
                found[space] = self.gate.factor(ones, aux, mask, self.moment)
        return found

    def _shadow(self, read: list[Place]) -> Any:
        def before(module: nn.Module, _: Any) -> None:
            if not self.awake:
                return
            own: dict[str, Tensor] = {}  # a copied module's are its
            for name, child, leaf in read:
                if (p := module.get_submodule(child)._parameters[leaf]) is not None:
                    own[name] = p
            seen = self.effective(list(own), own)
            for name, child, leaf in read:
                module.get_submodule(child).__dict__[leaf] = seen[name]

        return before

    def _unshadow(self, read: list[Place]) -> Any:
        def after(module: nn.Module, _: Any, __: Any) -> None:
            for _, child, leaf in read:
                module.get_submodule(child).__dict__.pop(leaf, None)

        return after

    def require_reached(self) -> None:
        """Refuse a parameter that the loop's loss reaches past its gate.

        Raises:
            ConfigError: It got a gradient, and what is trained in its gate got none on any rank.
        """
        if not self._unproven:
            return
        names = sorted(self._unproven)
        got = [any(t.grad is not None for t in self.aux[n].values()) for n in names]
        have = torch.tensor(got, device=self._device, dtype=torch.float32)
        with ranks.together():
            ranks.mean_([have])
        for name, reached in zip(names, have.tolist(), strict=True):
            if reached:
                self._unproven.discard(name)
            elif (found := self._read_elsewhere(name)) is not None:
                raise ConfigError(
                    f"{found} got a gradient past its gate: the model reads it elsewhere than in "
                    "the forward of the module that owns it, where no gate can stand; leave it out "
                    f"with ignore=[{found!r}]"
                )

    def _read_elsewhere(self, name: str) -> str | None:
        """A parameter with this gate that got a gradient which the gate should have got too."""
        moment, own = self.moment, [name]
        if self.gate.shared:
            own = list(self.units.spread({name: torch.ones(self.units.counts[name])}))
        reached = [(n, moment.parameters[n]) for n in own if n in moment.parameters]
        reached = [(n, p) for n, p in reached if self._watch.saw(p)]
        if not reached:
            return None
        state = moment.generator.get_state()
        with torch.enable_grad():
            if self.gate.shared:
                value = self.factors()[name]
            else:
                seen = {name: moment.parameters[name].detach()}
                value = self.effective([name], seen)[name]
        moment.generator.set_state(state)
        if not value.requires_grad:
            return None
        return next((n for n, p in reached if p.grad is not None and bool(p.grad.any())), None)

    def scores(self) -> dict[str, Tensor] | None:
        """Which elements (units, if shared) stay, by score; None where the gate counts itself."""
        found = {}
        for name, aux in self.aux.items():
            weight = self._weight(name)
            value = self.gate.scores(weight, aux)
            if value is None:
                return None
            found[name] = value.detach()
        return found

    def keeps(self) -> dict[str, Tensor]:
        """Which stay where the gate itself counts."""
        return {
            n: self.gate.keeps(self._weight(n), aux, self.moment) for n, aux in self.aux.items()
        }

    def _weight(self, name: str) -> Tensor:
        if self.gate.shared:
            return torch.ones(self.units.counts[name], device=_device(self.aux[name]))
        return self.moment.parameters[name].detach()

    def validate(self, stream: Stream, loss: Any) -> None:
        """Put gradients of a validation batch in place of the auxiliaries' own (bilevel)."""
        trained, moment = self.tensors(), self.moment
        batch = stream.batch(moment.step)
        moment.validating = True
        try:
            with torch.enable_grad(), frozen_statistics(moment.model), self._watch.closed():
                value = task_loss(run(moment.model, batch), batch, loss)
                grads = torch.autograd.grad(value, trained, allow_unused=True)
        finally:
            moment.validating = False
        for t, g in zip(trained, grads, strict=True):
            t.grad = g

    def gradients(self) -> list[Tensor]:
        """Of the auxiliaries, where there are any."""
        return [t.grad for t in self.tensors() if t.grad is not None]

    @torch.no_grad()
    def average(self, overflowing: bool) -> None:
        """Average the auxiliaries' gradients over ranks, as the loop does those of the weights.

        Args:
            overflowing: Whether a scaler skips steps unseen: what overflowed then is forgotten.
        """
        with ranks.together():
            if ranks.several() and self.tensors():  # a rank may not have used what another has
                got = [float(t.grad is not None) for t in self.tensors()]
                have = torch.tensor(got, device=self._device)
                ranks.mean_([have])
                for t, used in zip(self.tensors(), have.tolist(), strict=True):
                    if used and t.grad is None:
                        t.grad = torch.zeros_like(t)
            ranks.mean_(self.gradients())
        if overflowing and not finite(self.gradients()):
            for t in self.tensors():
                t.grad = None

    def before_step(self, scaler: Any) -> None:
        """Unscale the auxiliaries' gradients, show them, add those of the gate's own loss."""
        if scaler is not None and scaler.is_enabled():
            scale = scaler.get_scale()
            for t in self.tensors():
                if t.grad is not None:
                    t.grad.div_(scale)
        with torch.no_grad():
            self.gate.observe(self.aux, self.moment)
        with torch.enable_grad():
            loss = self.gate.loss(self.aux, self.moment)
        if loss is not None and loss.requires_grad:
            trained = [*self.tensors(), *self.moment.parameters.values()]
            with self._watch.closed():
                grads = torch.autograd.grad(loss, trained, allow_unused=True)
            for t, g in zip(trained, grads, strict=True):
                if g is not None:
                    t.grad = g if t.grad is None else t.grad + g

    def after_step(self, skipped: bool) -> None:
        """Step the auxiliaries with the weights; forget their gradients."""
        if self.optimizer is not None:
            self._follow()
            if not skipped:
                self.optimizer.step()
            self.optimizer.zero_grad()
        self._watch.clear()
        self._now.clear()
        self._reentrant = False
        if not skipped:
            with torch.no_grad():
                self.gate.updated(self.aux, self.moment)

    @property
    def _device(self) -> torch.device:
        return next(iter(self.moment.parameters.values())).device

    def tensors(self) -> list[Tensor]:
        return [t for of in self.aux.values() for t in of.values() if t.requires_grad]

    def remove(self) -> None:
        self.awake = False
        for handle in self.handles:
            handle.remove()
        self.handles.clear()
        self._now.clear()
        self._watch.remove()

    def state_dict(self) -> dict[str, Any]:
        aux = {n: {k: t.detach().clone() for k, t in of.items()} for n, of in self.aux.items()}
        slots = deepcopy(self.optimizer.state_dict()) if self.optimizer else {}
        return {"aux": aux, "optimizer": slots}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, of in self.aux.items():
            for key, tensor in of.items():
                tensor.copy_(state["aux"][name][key])
        if self.optimizer is not None:
            self.optimizer.load_state_dict(deepcopy(state["optimizer"]))
            self.optimizer.zero_grad()
        self._watch.clear()


def _device(aux: Mapping[str, Tensor]) -> torch.device:
    return next((t.device for t in aux.values()), torch.device("cpu"))
