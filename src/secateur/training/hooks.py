"""An attachment's hooks on the optimizer: once a step, however a step is made."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

from secateur.training.handle import ATTACHED, MASKED, Handle


def hook(handle: Handle) -> None:
    """Act before and after each step of the optimizer.

    Torch hooks the ``step`` of every class that an optimizer was made of, so that in a step which
    calls ``super().step()`` all hooks run twice: only those of the outermost call act.
    """
    optimizer = handle.moment.optimizer
    outermost: FrameType | None = None  # torch's wrapper; a count would be lost with a failed step

    def before(_: Any, args: Any, kwargs: Any) -> Any:
        nonlocal outermost
        caller = sys._getframe(1)
        if _inside(outermost, caller):
            return None
        outermost = caller
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            handle.before_step()
            return None
        return args[:1], {**kwargs, "closure": partial(_run, closure, handle)}

    def after(*_: Any) -> None:
        nonlocal outermost
        if not _inside(outermost, sys._getframe(1)):
            outermost = None
            handle.after_step()

    handle._hooks = [
        optimizer.register_step_pre_hook(before),
        optimizer.register_step_post_hook(after),
    ]
    optimizer.__dict__[ATTACHED] = True
    for p in handle.moment.parameters.values():
        MASKED[p] = True


def _inside(frame: FrameType | None, caller: FrameType) -> bool:
    """Whether a call is still running that has led to this caller."""
    above = caller.f_back if frame is not None else None
    while above is not None and above is not frame:
        above = above.f_back
    return above is not None


def _run(closure: Callable[[], Any], handle: Handle) -> Any:
    """A closure makes the gradients inside the step: only after it is there anything to change."""
    value = closure()
    handle.before_step()
    return value
