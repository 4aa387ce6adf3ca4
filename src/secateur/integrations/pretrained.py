"""A transformers model without its weights, and which tensors of its checkpoint are whose."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from secateur.engine.shards import Shards
from secateur.engine.streamed import weightless
from secateur.errors import ConfigError, MissingExtraError, StoreError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def build(folder: Path, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """The model that the folder's config describes, in evaluation mode, its weights on meta.

    Args:
        folder: With ``config.json``; nothing in it is executed.
        dtype: Default: that of the config.

    Raises:
        ConfigError: There is no config, or none of a model of transformers.
    """
    try:
        import transformers
    except ImportError as error:
        raise MissingExtraError(
            f"{folder} is read with transformers: pip install 'secateur[hf]'"
        ) from error
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"{folder} holds no config of transformers: {error}") from error
    if getattr(config, "quantization_config", None) is not None:
        raise ConfigError(
            f"{folder} is quantized: its weights are no plain numbers; give the checkpoint it was "
            "made from"
        )
    names = getattr(config, "architectures", None) or [""]
    kind = getattr(transformers, names[0], None)
    if kind is None:
        raise ConfigError(
            f"{folder}/config.json says architectures={names}: transformers has no such class"
        )
    before = torch.get_default_dtype()
    stored = getattr(config, "dtype", None) or torch.float32
    config.dtype = dtype or stored
    torch.set_default_dtype(config.dtype)
    try:
        with weightless():
            return kind(config).eval()
    finally:
        torch.set_default_dtype(before)


def head(model: PreTrainedModel) -> list[str]:
    """The module that turns the last hidden state into words: no block needs its weights."""
    found = getattr(model, "get_output_embeddings", lambda: None)()
    return [] if found is None else [n for n, m in model.named_modules() if m is found]


@dataclass(frozen=True)
class CheckpointNames:
    """Renamings and conversions as ``from_pretrained`` does them, for any part of a checkpoint.

    Attributes:
        model: Of transformers.
        places: The (first) tensor of the model that each tensor of the checkpoint goes into.
        patterns: Of tensors that are converted (stacked experts, split projections).
        converters: By pattern.
        inverse: The tensor of the checkpoint, for tensors that are only renamed.
    """

    model: PreTrainedModel
    places: Mapping[str, str]
    patterns: Mapping[str, str]
    converters: Mapping[str, Any]
    inverse: Mapping[str, str] = field(init=False)

    def __post_init__(self) -> None:
        plain = {p: key for key, p in self.places.items() if key not in self.patterns}
        object.__setattr__(self, "inverse", plain)

    def load(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors of the model, from tensors of the checkpoint."""
        loaded: dict[str, Tensor] = {}
        converted: dict[str, Any] = {}
        for key, value in values.items():
            pattern, place = self.patterns.get(key), self.places[key]
            if pattern is None:
                loaded[place] = value
                continue
            if place not in converted:
                converted[place] = copy.deepcopy(self.converters[pattern])
            converted[place].add_tensor(place, key, pattern, value)
        for place, converter in converted.items():
            made = converter.convert(place, model=self.model, config=self.model.config)
            for name, value in made.items():
                loaded[name] = value[0] if isinstance(value, list) else value
        return loaded

    def save(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors of the checkpoint, from tensors of the model."""
        from transformers.core_model_loading import revert_weight_conversion

        plain = {self.inverse[n]: v for n, v in values.items() if n in self.inverse}
        others = {n: v for n, v in values.items() if n not in self.inverse}
        return plain | (revert_weight_conversion(self.model, others) if others else {})


def names(model: PreTrainedModel, shards: Shards) -> CheckpointNames:
    """Find out which tensor of a checkpoint goes where.

    Raises:
        StoreError: No tensor of the checkpoint is one of the model.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import (
        WeightConverter,
        WeightRenaming,
        dot_natural_key,
        rename_source_key,
    )

    mapping = get_model_conversion_mapping(model)
    renamings = [m for m in mapping if isinstance(m, WeightRenaming)]
    converters = [m for m in mapping if isinstance(m, WeightConverter)]
    state = model.state_dict()
    places: dict[str, str] = {}
    patterns: dict[str, str] = {}
    for key in sorted(shards.places, key=dot_natural_key):
        place, pattern = rename_source_key(
            key, renamings, converters, model.base_model_prefix, state
        )
        if place not in state and key in state:
            place, pattern = key, None
        if place in state:
            places[key] = place
            if pattern is not None:
                patterns[key] = pattern
    if not places:
        raise StoreError(
            f"no tensor of {shards.folder} is one of {type(model).__name__}: its config belongs "
            "to another checkpoint"
        )
    used: Any = [m for m in mapping if m.was_used()]
    model._weight_conversions = used  # what revert_weight_conversion goes by
    by_pattern = {p: c for c in converters for p in c.source_patterns}
    return CheckpointNames(model, places, patterns, by_pattern)
