"""Calibration text: a file in UTF-8, cut into pieces by the tokenizer of a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from secateur.cli.packages import tokenizer
from secateur.errors import ConfigError, DataError

if TYPE_CHECKING:
    from secateur.analyse.language import Windows

NUMBER, LENGTH = 16, 512


def pieces(
    file: str, folder: str, config: Any, *, number: int, length: int | None, seed: int
) -> Windows:
    """Pieces from random places of a text; see ``sec.language.calibration``.

    Args:
        file: The text.
        folder: Of the tokenizer.
        config: Of the model, which may say how long a piece can be.
        number, length: How many pieces of how many tokens; by default 512, or as many as the model
            takes.
        seed: Of the places.

    Raises:
        ConfigError: The folder holds no tokenizer, or a number is out of range.
        DataError: The text cannot be read, or is too short.
    """
    from secateur.analyse import language

    longest = getattr(config, "max_position_embeddings", None)
    if length is None:
        length = min(LENGTH, longest) if isinstance(longest, int) else LENGTH
    for name, value in (("--samples", number), ("--length", length)):
        if value < 1:
            raise ConfigError(f"{name} {value}: give at least 1")
    try:
        text = Path(file).expanduser().read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"--text {file} cannot be read: {error}. Give a file of plain text in UTF-8."
        ) from error
    found = tokenizer(folder)
    try:
        return language.calibration(
            found, text, number=number, length=length, seed=seed, source=str(file)
        )
    except DataError as error:
        raise DataError(f"--text {file}: {error} (--samples, --length)") from error
