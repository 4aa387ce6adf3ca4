"""Least squares: let each layer that lost inputs say again what the dense layer says."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secateur.engine.batches import Forward, require, require_finite, require_teacher, take
from secateur.engine.calibration import checked
from secateur.errors import ConfigError, DataError
from secateur.recovery.fed_less import fed_less
from secateur.recovery.moments import Moments, execution_order, gather, weight_rows
from secateur.recovery.registry import member


@member("least-squares")
@dataclass(frozen=True)
class LeastSquares:
    r"""Refit the weights that meet pruned inputs, layer by layer, in closed form.

    For every linear or convolution layer with fewer inputs than in the dense model,

    $$\min_{W', b'} \lVert Y - X W'^\top - b' \rVert^2 + \lambda \lVert W' - W \rVert^2$$

    with $Y$ the dense layer's outputs (those still there), $X$ the inputs of the pruned layer and
    $W$ its weight before; $\lambda$ is ``ridge`` times the mean square of an input. Shrinking
    towards $W$ means that few data change little. Only the Gram matrix of $X$ and its product with
    the error are kept.

    Args:
        ridge: relative $\lambda$; 0 for the plain (minimum-change) solution.
        batches: how many batches to use; ``None``: all.
        bias: refit the bias too, where the layer has one.
        sequential: one pass a layer, in order of execution, so that each layer sees the mended ones
            before it. ``False`` gathers everything in one pass: quicker, and right for layers that
            do not feed one another; in a deep network the errors then add up.
        layers: globs of the layers to mend; ``None``: all that lost inputs.
        forward: ``(model, batch) -> output`` for batches that are neither tuples nor dicts.

    Paper: He, Zhang & Sun, Channel pruning, arXiv:1707.06168 (its reconstruction step).
    """

    ridge: float = 1e-4
    batches: int | None = 10
    bias: bool = True
    sequential: bool = True
    layers: Sequence[str] | None = None
    forward: Forward | None = None

    def heal(
        self,
        model: nn.Module,
        plan: Any = None,
        data: Iterable[Any] | None = None,
        teacher: nn.Module | None = None,
    ) -> dict[str, Any]:
        """Refit ``model`` in place against ``teacher``; module names must be the same in both.

        Returns:
            ``layers``: relative error of each layer's outputs before and after, on these data, with
            the number of samples and inputs; ``skipped``: what was left alone, and why.

        Raises:
            DataError: no teacher or data, batches that do not fit, numbers that are not finite.

        Example:
            >>> dense = nn.Sequential(nn.Linear(2, 9), nn.Linear(9, 3))
            >>> pruned = nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 3))
            >>> kept = {k: v[:4] for k, v in dense[0].state_dict().items()}
            >>> _ = pruned[0].load_state_dict(kept)
            >>> rest = {"weight": dense[1].weight[:, :4], "bias": dense[1].bias}
            >>> _ = pruned[1].load_state_dict(rest)
            >>> report = LeastSquares(ridge=0).heal(pruned, None, [torch.randn(50, 2)], dense)
            >>> report["layers"]["1"]["after"] < 1e-5
            True
        """
        if self.ridge < 0:
            raise ConfigError(f"LeastSquares(ridge={self.ridge}): give 0 or more.")
        dense = require_teacher(teacher, model, "LeastSquares")
        source = require(data, "LeastSquares")
        require_finite(model)
        require_finite(dense)
        places, skipped = fed_less(model, dense, plan, self.layers)
        rows = {name: outputs for name, (outputs, _) in places.items()}
        batches = (
            list(checked(dense, take(source, self.batches))) if rows and self.sequential else None
        )
        mended: dict[str, dict[str, float]] = {}
        before = {name: _tensors(model.get_submodule(name)) for name in rows}
        try:
            groups = [(dict(rows), 0)] if rows else []
            if batches is not None:
                order = execution_order(model, rows, batches[0], self.forward)
                groups = [({name: rows[name]}, calls) for name, calls in order.items()]
            for group, calls in groups:
                stream = (
                    checked(dense, take(source, self.batches)) if batches is None else iter(batches)
                )
                moments = gather(model, dense, group, stream, self.forward, calls)
                for name, seen in moments.items():
                    if not seen.count:
                        skipped[name] = seen.trouble or "its forward is never called"
                    elif (result := self._solve(model.get_submodule(name), seen)) is None:
                        skipped[name] = "the least-squares system could not be solved"
                    else:
                        mended[name] = result
        except Exception:
            for tensors in before.values():
                for tensor, old in tensors:
                    tensor.data.copy_(old)
            raise
        return {"recovery": "least-squares", "layers": mended, "skipped": skipped}

    def _solve(self, layer: nn.Module, seen: Moments) -> dict[str, float] | None:
        gram, cross, squares = seen.gram, seen.cross, seen.error_squares
        bias = getattr(layer, "bias", None)
        shift = self.bias and isinstance(bias, Tensor)
        mean_x, mean_e = seen.input_sum / seen.count, seen.error_sum / seen.count
        if shift:  # the best bias removes the means; what is left is the centred problem
            gram = gram - seen.count * torch.outer(mean_x, mean_x)
            cross = cross - seen.count * torch.outer(mean_x, mean_e)
            squares = squares - seen.count * mean_e.square().sum()
        if not bool(torch.isfinite(gram).all() and torch.isfinite(cross).all()):
            raise DataError(
                "activations of the dense or the pruned model are not finite on these batches: "
                "look for NaN in the data."
            )
        strength = self.ridge * gram.diagonal().mean()
        change = _solve(gram + strength * torch.eye(len(gram)).to(gram), cross, self.ridge > 0)
        after = squares - 2 * (change * cross).sum() + (change * (gram @ change)).sum()
        if not bool(torch.isfinite(after)) or after > seen.error_squares * (1 + 1e-6):
            return None
        with torch.no_grad():
            weight = weight_rows(layer)
            weight += change.T.reshape(weight.shape).to(weight.dtype)
            if shift and isinstance(bias, Tensor):
                bias += (mean_e - change.T @ mean_x).to(bias.dtype)
        scale = seen.output_squares.clamp_min(1e-30)
        return {
            "before": float((seen.error_squares / scale).sqrt()),
            "after": float((after.clamp_min(0) / scale).sqrt()),
            "samples": seen.count,
            "inputs": len(gram),
        }


def _solve(matrix: Tensor, right: Tensor, ridged: bool) -> Tensor:
    """Cholesky if a ridge makes the matrix definite; else the solution of smallest norm."""
    if ridged:
        factor, failed = torch.linalg.cholesky_ex(matrix)
        if not bool(failed):
            return torch.cholesky_solve(right, factor)
    noise = 1e-10 if matrix.device.type == "cpu" else 1e-6  # relative precision of the products
    return torch.linalg.pinv(matrix, rtol=noise, hermitian=True) @ right


def _tensors(layer: nn.Module) -> list[tuple[Tensor, Tensor]]:
    return [(p, p.detach().clone()) for p in layer.parameters(recurse=False)]
