"""Random tickets: random masks inside layers, with densities that fall with depth."""

from functools import partial

from secateur.methods.registry import Method, method
from secateur.scope.smart_ratio import smart_ratio as densities


@method(stage="before", paper="arXiv:2009.11094")
def smart_ratio(
    amount: float = 0.9, *, classifier: float = 0.3, steep: bool = False, hybrid: bool = False
) -> Method:
    r"""Layer l keeps a share $\propto (L - l + 1)^2 + (L - l + 1)$, at random.

    Args:
        amount: Fraction removed.
        classifier: Fraction of the last, fully connected layer that stays.
        steep: Divide the shares by $l^2$, as the paper does for VGG.
        hybrid: Keep the largest weights of a layer in place of random ones (for trained networks).

    Example:
        >>> smart_ratio(0.9).criterion, smart_ratio(0.9, hybrid=True).criterion
        ('random', 'magnitude')
    """
    return Method(
        amount,
        criterion="magnitude" if hybrid else "random",
        scope=partial(densities, classifier=classifier, steep=steep),
    )
