"""ER and ERK: thin layers stay denser than wide ones (Erdos-Renyi, with kernels)."""

from math import prod

from secateur.scope.allocation import Shapes, allocation, filled


@allocation("erk")
def erk(shapes: Shapes, amount: float, *, power: float = 1.0, kernels: bool = True) -> dict:
    r"""Density $d_l = \epsilon \left(\frac{\sum_i n_i}{\prod_i n_i}\right)^p$ over all axes.

    $\epsilon$ makes the whole network as dense as asked; layers that would be denser than 1 are
    dense and $\epsilon$ is solved again for the others. ER counts the two channel axes only, power
    0 is uniform.

    Args:
        shapes: Name -> shape ``(out, in, ...)``.
        amount: Fraction that goes.
        power: p.
        kernels: Whether spatial axes count (ERK) or not (ER).

    Returns:
        Name -> density in (0, 1].

    Example:
        >>> found = erk({"a": (2, 4), "b": (3, 6), "c": (2, 4, 6)}, 0.5)
        >>> [round(1 - d, 4) for d in found.values()]
        [0.0, 0.3095, 0.6548]

    Paper:
        SET, Mocanu et al., Nature Communications 2018; RigL, arXiv:1911.11134.
    """
    sizes = {n: prod(s) for n, s in shapes.items()}
    raw = {}
    for name, shape in shapes.items():
        counted = shape if kernels else shape[:2]
        raw[name] = (sum(counted) / prod(counted)) ** power
    return filled(raw, sizes, (1 - amount) * sum(sizes.values()))


@allocation("er")
def er(shapes: Shapes, amount: float) -> dict:
    """ERK without the spatial axes (SET).

    Example:
        >>> found = er({"a": (2, 4), "b": (3, 6), "c": (4, 6, 2)}, 0.5)
        >>> [round(1 - d, 2) for d in found.values()]
        [0.21, 0.47, 0.56]
    """
    return erk(shapes, amount, kernels=False)
