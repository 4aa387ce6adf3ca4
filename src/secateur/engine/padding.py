"""Which rows of activations are tokens and which are padding, while a model runs on a batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from secateur.graph.forward import tensors_of_output
from secateur.measure.calling import named_inputs


class Tokens:
    """What the inputs of a model say about padding.

    A model of an encoder and a decoder has a mask for each, and which counts for a module is
    decided by the side that it is on: the decoder reads the encoder's tokens only where it is given
    what the encoder gave.

    Args:
        model: Any; that of Hugging Face names its masks ``attention_mask`` and, of a decoder behind
            an encoder, ``decoder_attention_mask``.
        inputs: A tensor, a tuple of positional inputs or a dict of keyword inputs.

    Example:
        >>> class Net(nn.Linear):
        ...     def forward(self, x, attention_mask):
        ...         return super().forward(x)
        >>> inputs = {"x": torch.ones(1, 3, 2), "attention_mask": torch.tensor([[1, 1, 0]])}
        >>> Tokens(Net(2, 1), inputs).rows(inputs["x"])
        tensor([ True,  True, False])
    """

    def __init__(self, model: nn.Module, inputs: Any) -> None:
        given = named_inputs(model, inputs)
        self.model = model
        self.own = _mask(given, "attention_mask")
        self.decoder = _mask(given, "decoder_attention_mask")
        self.behind: Tensor | None = None  # what the encoder gave, which the decoder reads
        self.alone: set[str] = set()  # modules that are given no padding
        self.unsure: set[str] = set()
        answers = (given.get(name) for name in ("decoder_input_ids", "labels"))
        self._answer = next((t for t in answers if isinstance(t, Tensor)), None)
        self._given = given

    @cached_property
    def padded(self) -> bool:
        """Whether there is padding at all."""
        return any(m is not None and not bool(m.all()) for m in (self.own, self.decoder))

    @cached_property
    def sides(self) -> tuple[str, str] | None:
        """Names of the encoder and the decoder; None of a model that is not made of the two."""
        config = getattr(self.model, "config", None)
        if not getattr(config, "is_encoder_decoder", False):
            return None
        names = {id(m): n for n, m in self.model.named_modules()}
        found = [
            names.get(id(getattr(self.model, f"get_{side}", lambda: None)()), "")
            for side in ("encoder", "decoder")
        ]
        return (found[0], found[1]) if all(found) else None

    def mask(self, name: str, x: Tensor | None = None) -> Tensor | None:
        """The mask of the tokens that a module works on, ``(batch, length)``, True = no padding.

        Args:
            name: Of the module or of a parameter of it; empty: what the model gives.
            x: What the module is given.
        """
        if self.sides is None or f"{name}.".startswith(f"{self.sides[0]}."):
            return self.own
        lasting = self.decoder
        if lasting is None and self._answer is not None and self._answer.dim() == 2:
            lasting = torch.ones_like(self._answer, dtype=torch.bool)
        if x is None or self.own is None:
            return lasting
        of_encoder = self.behind is not None and _same_memory(x, self.behind)
        alike = lasting is not None and not _fits(x, lasting) and _fits(x, self.own)
        return self.own if of_encoder or alike else lasting

    def rows(self, x: Tensor, name: str = "") -> Tensor | None:
        """Which rows of ``x.flatten(0, -2)`` are no padding; None: all of them, or it is not known.

        Modules of which it is not known are remembered as ``unsure``.
        """
        if not self.padded or self._spared(name):
            return None
        mask = self.mask(name, x)
        if mask is None or bool(mask.all()):
            return None
        if not _fits(x, mask):
            self.unsure.add(name)
            return None
        mask = mask.to(x.device)
        if x.dim() == 2:
            return mask.flatten()
        return mask.view(*mask.shape, *[1] * (x.dim() - 3)).expand(x.shape[:-1]).flatten()

    def _spared(self, name: str) -> bool:
        return any(f"{name}.".startswith(f"{module}.") for module in self.alone)

    @contextmanager
    def watching_the_encoder(self) -> Iterator[None]:
        """Remember meanwhile what the encoder gives."""
        if self.sides is None or (self.own is None and self.decoder is None):
            yield
            return

        def note(_: nn.Module, __: Any, output: Any) -> None:
            self.behind = next(iter(tensors_of_output(output)), None)

        self.behind = next(iter(tensors_of_output(self._given.get("encoder_outputs"))), None)
        hook = self.model.get_submodule(self.sides[0]).register_forward_hook(note)
        try:
            yield
        finally:
            hook.remove()
            self.behind = None

    @contextmanager
    def without_padding_for_experts(self) -> Iterator[None]:
        """Give stacked experts no padding meanwhile; what they would make of it is zero.

        Which rows come to an expert is only known before they are sorted.
        """
        with ExitStack() as stack:
            for name, module in self.model.named_modules() if self.padded else ():
                if any(p.dim() == 3 for p in module.parameters(recurse=False)):
                    mask = self.mask(name)
                    if mask is not None and bool(mask.any()) and not bool(mask.all()):
                        stack.enter_context(_only(module, mask.flatten(), self.alone, name))
            yield


_now: ContextVar[Tokens | None] = ContextVar("tokens", default=None)
_excluding: ContextVar[bool] = ContextVar("excluding", default=False)


@contextmanager
def running(model: nn.Module, inputs: Any) -> Iterator[None]:
    """Let ``valid_rows`` know the batch meanwhile."""
    tokens = Tokens(model, inputs)
    if tokens.own is None and tokens.decoder is None:
        token = _now.set(None)
        try:
            yield
        finally:
            _now.reset(token)
        return
    token = _now.set(tokens)
    try:
        with ExitStack() as stack:
            stack.enter_context(tokens.watching_the_encoder())
            if _excluding.get():
                stack.enter_context(tokens.without_padding_for_experts())
            yield
    finally:
        _now.reset(token)


@contextmanager
def no_padding_for_experts() -> Iterator[None]:
    """Models that are run meanwhile give their stacked experts no padding."""
    token = _excluding.set(True)
    try:
        yield
    finally:
        _excluding.reset(token)


def tokens_now() -> Tokens | None:
    """What is known of the batch that is being run; None where none is, or it has no masks."""
    return _now.get()


def valid_rows(x: Tensor, name: str) -> Tensor | None:
    """As ``Tokens.rows``, of the batch that is being run: for hooks."""
    tokens = _now.get()
    return None if tokens is None else tokens.rows(x, name)


def unsure_now() -> set[str]:
    """Names of which it was not known, in the batch that is being run."""
    tokens = _now.get()
    return set() if tokens is None else tokens.unsure


def picked(x: Tensor, valid: Tensor | None) -> Tensor:
    """The rows of ``x.flatten(0, -2)`` that are valid.

    Example:
        >>> picked(torch.tensor([[[1.0], [2.0]]]), torch.tensor([True, False]))
        tensor([[1.]])
    """
    rows = x.flatten(0, -2) if x.dim() > 2 else x
    return rows if valid is None else rows[valid]


def unsure_note(names: Sequence[str]) -> str:
    """That padding could not be told from tokens."""
    few = ", ".join(sorted(names)[:3])
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return (
        f"{few}{more} saw other rows than the batch has tokens, so padding among them was counted: "
        "give batches without padding (texts of one length)"
    )


@contextmanager
def _only(module: nn.Module, valid: Tensor, alone: set[str], name: str) -> Iterator[None]:
    """A module is given the valid rows of whatever has a row for each token."""
    stripped: list[bool] = []

    def shorter(value: Any) -> Any:
        per_token = isinstance(value, Tensor) and value.dim() and len(value) == len(valid)
        return value[valid.to(value.device)] if per_token else value

    def before(_: nn.Module, args: Any, kwargs: Any) -> Any:
        given = [v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)]
        stripped.append(len(given) > 1 and all(len(t) == len(valid) for t in given if t.dim()))
        if not stripped[-1]:
            return None
        alone.add(name)
        return tuple(map(shorter, args)), {k: shorter(v) for k, v in kwargs.items()}

    def after(_: nn.Module, __: Any, output: Any) -> Any:
        if not stripped.pop() or not isinstance(output, Tensor):
            return None
        whole = output.new_zeros(len(valid), *output.shape[1:])
        whole[valid.to(output.device)] = output
        return whole

    hooks = [
        module.register_forward_pre_hook(before, with_kwargs=True),
        module.register_forward_hook(after),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _mask(given: Mapping[str, Any], name: str) -> Tensor | None:
    mask = given.get(name)
    return mask != 0 if isinstance(mask, Tensor) and mask.dim() == 2 else None


def _same_memory(x: Tensor, other: Tensor) -> bool:
    return x.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


def _fits(x: Tensor, mask: Tensor) -> bool:
    """Whether the rows of x are the tokens of a mask."""
    return len(x) == mask.numel() if x.dim() == 2 else x.shape[:2] == mask.shape
