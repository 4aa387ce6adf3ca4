"""Dual lottery tickets: a random sparse network is made trainable by what the rest hands over."""

from dataclasses import replace
from typing import Any

from secateur.methods.during.growing_regularisation import growing_regularisation
from secateur.methods.registry import Method, method


@method(stage="before", paper="arXiv:2203.04248")
def dual_ticket(
    amount: float = 0.9,
    *,
    every: int = 5,
    ceiling: float = 1.0,
    grow: float = 0.3,
    end: float = 0.5,
    scope: Any = "erk",
    granularity: Any = "element",
) -> Method:
    r"""Random sparse network transformation: a random mask, and time to move out of the rest.

    The loss gets $\frac{\lambda}{2} \sum_{masked} w^2$ with $\lambda$ rising to ``ceiling``, so
    that what is masked shrinks while the whole network learns; at ``end`` it is removed and the
    random subnetwork, now a ticket, is trained for the rest of the run. The kept set never changes.

    Args:
        amount: Fraction removed, at random.
        every: Steps between two increments; the paper's is 5.
        ceiling: Final $\lambda$.
        grow: Part of training after which $\lambda$ is constant.
        end: Part of training that is transformation; the rest is training of the ticket.
        scope: Allocation of the random mask over layers.
        granularity: What is kept or removed as one.

    Raises:
        ConfigError: Options out of order or range.

    Example:
        >>> dual_ticket(0.9).criterion
        'random'
    """
    made = growing_regularisation(
        amount, every=every, ceiling=ceiling, grow=grow, end=end, scope=scope,
        granularity=granularity,
    )  # fmt: skip
    return replace(made, criterion="random")
