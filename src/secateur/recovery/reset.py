"""Give a pruned model other weights: those of an earlier step, or new ones."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from secateur.engine.masks import MaskSet
from secateur.errors import ConfigError, DataError
from secateur.measure.calling import words


def reset_to(
    model: nn.Module,
    plan: Any,
    weights: Mapping[str, Tensor],
    dense: nn.Module | None,
    who: str,
) -> None:
    """Give ``model`` the dense model's ``weights``, as far as the plan keeps them.

    Args:
        model: the pruned model, changed in place.
        plan: masks or nothing, whose model has the dense shapes; or a plan of channels.
        weights: the dense model's state dict.
        dense: a model of the dense shapes, for a plan of channels; never changed.
        who: for messages.

    Raises:
        ConfigError: the weights do not fit.
        DataError: a plan of channels without ``dense``.
    """
    try:
        if plan is None or isinstance(plan, MaskSet):
            model.load_state_dict(weights)
            return
        if dense is None:
            raise DataError(
                f"{who}: a plan of channels is applied to the dense model's earlier weights: pass "
                "teacher=, the dense model."
            )
        whole = copy.deepcopy(dense)
        whole.load_state_dict(weights)
    except RuntimeError as error:
        raise ConfigError(
            f"{who}: the weights are not those of the dense model: {words(error)}. Give its state "
            "dict."
        ) from error
    model.load_state_dict(plan.apply(whole).state_dict())


def initialized(model: nn.Module) -> None:
    """Call ``reset_parameters`` of every module, in place.

    Raises:
        ConfigError: a parameter whose module has no such method.
    """
    for name, module in model.named_modules():
        reset = getattr(module, "reset_parameters", getattr(module, "_reset_parameters", None))
        own = [n for n, _ in module.named_parameters(recurse=False)]
        if callable(reset):
            reset()
        elif own:
            where = f"{name}.{own[0]}".lstrip(".")
            raise ConfigError(
                f"FromScratch: {where} belongs to a {type(module).__name__}, which has no "
                "reset_parameters(): give build=, a function that makes the dense model anew."
            )


@contextmanager
def restored(model: nn.Module) -> Iterator[None]:
    """On an error the model gets back what it holds now."""
    before = {k: v.detach().clone() for k, v in model.state_dict().items() if _is_tensor(v)}
    try:
        yield
    except Exception:
        model.load_state_dict(before, strict=False)
        raise


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)
