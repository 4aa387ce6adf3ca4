"""Continuous sparsification: sigmoid gates that are sharpened until they are a mask, in rounds."""

from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.engine.seams import Auxiliaries, Gate, Moment, Tensors
from secateur.errors import ConfigError
from secateur.methods.registry import Method, method


@dataclass(frozen=True)
class Sharpened(Gate):
    r"""Factor $\sigma(\beta s)/\sigma(s_0)$, with $\beta$ from 1 to its final value each round."""

    lr: float | None = None
    initial: float = 0.0
    sharpness: float = 200.0
    strength: float = 1e-8
    rounds: int = 1
    rewind: float = 0.0

    def auxiliaries(self, name: str, weight: Tensor, generator: torch.Generator) -> Tensors:
        return {"s": torch.full_like(weight, self.initial, dtype=torch.float32)}

    def sharp(self, moment: Moment) -> float:
        """Beta at this point of its round."""
        done = moment.progress * self.rounds
        return self.sharpness ** (done - min(int(done), self.rounds - 1))

    def factor(self, weight: Tensor, aux: Tensors, mask: Tensor, moment: Moment) -> Tensor:
        return (self.sharp(moment) * aux["s"]).sigmoid() * self._scale()

    def _scale(self) -> float:
        return 1 / float(torch.tensor(self.initial).sigmoid())

    def scores(self, weight: Tensor, aux: Tensors) -> Tensor:
        return aux["s"]

    def keeps(self, weight: Tensor, aux: Tensors, moment: Moment) -> Tensor:
        return aux["s"].detach() > 0

    def loss(self, aux: Auxiliaries, moment: Moment) -> Tensor:
        beta, scale = self.sharp(moment), self._scale()
        sums = torch.stack([(beta * a["s"]).sigmoid().sum() * scale for a in aux.values()])
        count = sum(int((a["s"] > 0).sum()) for a in aux.values())
        total = sum(a["s"].numel() for a in aux.values())
        reached = moment.target > 0 and count <= (1 - moment.target) * total
        return sums.sum() * (0 if reached else self.strength)

    def updated(self, aux: Auxiliaries, moment: Moment) -> None:
        before = (moment.step - 1) * self.rounds // moment.steps
        now = moment.step * self.rounds // moment.steps
        tensors = {**dict(moment.model.named_parameters()), **dict(moment.model.named_buffers())}
        if self.rounds > 1 and moment.step == max(round(self.rewind * moment.steps), 1):
            moment.state.update({f"early.{n}": t.detach().clone() for n, t in tensors.items()})
        if now == before or now >= self.rounds:
            return
        for a in aux.values():
            a["s"].copy_((self.sharpness * a["s"]).clamp(max=self.initial))
        for name, t in tensors.items():
            t.copy_(moment.state[f"early.{name}"])
            moment.optimizer.state.pop(t, None)

    def harden(self, weight: Tensor, aux: Tensors, mask: Tensor, moment: Moment) -> Tensor:
        return weight * mask * self._scale()


@method(stage="during", paper="arXiv:1912.04427")
def continuous_sparsification(
    amount: float | None = None,
    *,
    initial: float = 0.0,
    sharpness: float = 200.0,
    strength: float = 1e-8,
    rounds: int = 1,
    rewind: float = 0.0,
    lr: float | None = None,
) -> Method:
    r"""Gates $\sigma(\beta s)$ train with the weights while $\beta$ grows exponentially.

    The loss gets ``strength`` $\cdot \sum \sigma(\beta s)/\sigma(s_0)$; what ends with $s > 0$
    stays. After each round but the last $s \leftarrow \min(\beta s, s_0)$, so that what was
    suppressed stays so, and all parameters and buffers, as the statistics of batch norms, go back
    to an early step (the search for a ticket).

    Args:
        amount: Fraction removed: the charge stops where it is reached, and at the end exactly the
            highest $s$ stay. None leaves it to ``initial`` and the charge, as in the paper.
        initial: $s_0$; lower is sparser.
        sharpness: Final $\beta$.
        strength: Of the charge, per weight.
        rounds: How often.
        rewind: Progress at which the parameters to go back to are kept, in the first round; 0 is
            after the first step.
        lr: Of $s$; None follows the optimizer's.

    Raises:
        ConfigError: Less than one round, or a rewind to after the first.

    Example:
        >>> continuous_sparsification(rounds=3).gate.rounds
        3

    Paper:
        Savarese, Silva and Maire, NeurIPS 2020.
    """
    if rounds < 1 or not 0 <= rewind < 1 / rounds:
        raise ConfigError(
            f"continuous_sparsification: rounds={rounds} and rewind={rewind}: at least one round, "
            "and rewind in [0, 1/rounds), inside the first"
        )
    gate = Sharpened(lr, initial, sharpness, strength, rounds, rewind)
    return Method(amount, criterion=None, scope="global", schedule="exponential", gate=gate)
