"""The product of three tensors that bilinear layers are made of."""

from __future__ import annotations

from typing import TYPE_CHECKING

from secateur.graph.axes import Axes, locked, one, resolve, unify
from secateur.graph.rules import aten, rule

if TYPE_CHECKING:
    from secateur.graph.capture import Op


@rule(aten._trilinear)
def trilinear(op: Op) -> Axes:
    """Factors get size-1 axes at their ``expand`` places; a product, summed over ``sumdim``.

    ``nn.Bilinear`` is (b, 1, i, 1) x (1, o, i, j) x (b, 1, 1, j), summed over i and j.
    """
    factors = []
    for k in "123":
        tensor, expanded = op.arg("i" + k), op.arg("expand" + k, [])
        own = iter(range(tensor.dim()))
        places = range(tensor.dim() + len(expanded))
        factors.append((tensor, [None if d in expanded else next(own) for d in places]))
    result: Axes = []
    op.zero = True
    for d in range(len(factors[0][1])):
        having = [(x, i) for x, dims in factors if (i := dims[d]) is not None and x.shape[i] != 1]
        for x, i in having[1:]:
            unify(op.axes(having[0][0])[having[0][1]], op.axes(x)[i])
        e = resolve(op.axes(having[0][0])[having[0][1]]) if having else one()
        masked = any(op.is_zero(x) for x, _ in having) or locked(e)
        if d in op.arg("sumdim"):
            for x, i in having:
                op.contracts(x, i)
            if not masked:
                op.statistical(e, "trilinear product of values that masking does not make zero")
        else:
            op.zero = op.zero and masked
            result.append(e)
    return result
