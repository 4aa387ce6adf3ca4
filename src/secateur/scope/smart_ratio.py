"""Smart ratios: first layers dense, last ones sparse, whatever the weights are."""

from math import prod

from secateur.errors import ConfigError
from secateur.scope.allocation import Shapes, allocation, filled


@allocation("smart-ratio")
def smart_ratio(
    shapes: Shapes, amount: float, *, classifier: float = 0.3, steep: bool = False
) -> dict[str, float]:
    r"""Density $p_l \propto (L - l + 1)^2 + (L - l + 1)$ of layer $l = 1 \dots L$.

    The last layer, if it is a matrix, is the classifier: it has a density of its own and does not
    count among the L. Layers that would be denser than 1 are dense, and the others share what that
    leaves over, so that the whole is as dense as asked.

    Args:
        shapes: Name -> shape ``(out, in, ...)``, in the order of the layers.
        amount: Fraction that goes.
        classifier: Fraction of the classifier that stays.
        steep: Divide by $l^2$, as the paper does for VGG.

    Returns:
        Name -> density in (0, 1].

    Raises:
        ConfigError: The classifier alone is more than should stay of the whole.

    Example:
        >>> found = smart_ratio({"a": (8, 8, 3, 3), "b": (8, 8, 3, 3), "fc": (10, 8)}, 0.7)
        >>> [round(d, 2) for d in found.values()]
        [0.45, 0.15, 0.3]

    Paper:
        arXiv:2009.11094.
    """
    sizes = {n: prod(s) for n, s in shapes.items()}
    *body, last = shapes
    if len(shapes[last]) != 2 or not body:
        body, last = list(shapes), ""
    stay = (1 - amount) * sum(sizes.values())
    fixed = classifier * sizes[last] if last else 0.0
    if fixed > stay:
        raise ConfigError(
            f"smart-ratio keeps {classifier:g} of the classifier {last}, {fixed:.0f} weights, and "
            f"amount={amount:g} leaves {stay:.0f} of the whole network: give a smaller "
            "classifier= or amount="
        )
    count = len(body)
    raw = {n: float((count - i) ** 2 + count - i) for i, n in enumerate(body)}
    if steep:
        raw = {n: p / (i + 1) ** 2 for i, (n, p) in enumerate(raw.items())}
    return {**filled(raw, sizes, stay - fixed), **({last: classifier} if last else {})}
