"""Architectures of Hugging Face transformers, each from a tiny random configuration."""

from collections.abc import Iterator
from itertools import chain

from benchmarks.coverage import (
    transformers_decoders,
    transformers_encoders,
    transformers_other,
    transformers_vision,
)
from benchmarks.coverage.case import Case


def cases() -> Iterator[Case]:
    """Yield encoders, decoders, encoder-decoders, vision, audio and multimodal models."""
    for tiny in chain(
        transformers_encoders.MODELS,
        transformers_decoders.MODELS,
        transformers_vision.MODELS,
        transformers_other.MODELS,
    ):
        yield Case("transformers", tiny.name, tiny.build)
