"""Six novels of Jane Austen (public domain): from which one is this passage of 64 words?"""

import gzip
import re
import warnings
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import TensorDataset

from secateur.zoo.places import embedded

LICENCE = "public domain"
NOVELS = (
    "emma",
    "mansfieldpark",
    "northangerabbey",
    "persuasion",
    "prideprejudice",
    "sensesensibility",
)
LENGTH = 64  # words a passage
PADDING, UNKNOWN = 0, 1  # token ids; the others are words by falling frequency
VOCABULARY = 4000
HEADING = re.compile(r"(chapter|volume)\s", re.IGNORECASE)
WORD = re.compile(r"[a-z]+(?:'[a-z]+)?")


def load(split: str, full: bool) -> TensorDataset:
    """Read token ids `(n, 64)` and novel numbers `(n,)`; there is no larger set than this."""
    arrays = embedded("austen")
    tokens, labels = arrays[f"{split}_tokens"], arrays[f"{split}_labels"]
    return TensorDataset(*(torch.from_numpy(a.astype(np.int64)) for a in (tokens, labels)))


def vocabulary() -> list[str]:
    """List the words by token id, padding and the unknown word first."""
    return embedded("austen")["vocabulary"].tobytes().decode().split("\n")


def prepare(source: Path) -> dict[str, np.ndarray]:
    """Cut each chapter into passages; every fifth chapter is for testing.

    Args:
        source: the folder `data` of the R package janeaustenr (Debian's r-cran-janeaustenr);
            reading it needs `pip install rdata`.
    """
    chapters = []
    for label, novel in enumerate(NOVELS):
        for text in _chapters(_novels(source)[novel]):
            chapters.append((label, WORD.findall(text.lower())))
    tested = [i % 5 == 0 for i in range(len(chapters))]
    counts = Counter(
        w for (_, words), test in zip(chapters, tested, strict=True) if not test for w in words
    )
    kept = sorted(counts, key=lambda word: (-counts[word], word))[: VOCABULARY - 2]
    words_by_id = ["<padding>", "<unknown>", *kept]
    ids = {word: i for i, word in enumerate(words_by_id)}
    arrays = {"vocabulary": np.frombuffer("\n".join(words_by_id).encode(), np.uint8)}
    for split in ("train", "test"):
        tokens, labels = [], []
        for (label, words), test in zip(chapters, tested, strict=True):
            if test != (split == "test"):
                continue
            for start in range(0, len(words) - LENGTH // 2, LENGTH):
                passage = [ids.get(w, UNKNOWN) for w in words[start : start + LENGTH]]
                tokens.append(passage + [PADDING] * (LENGTH - len(passage)))
                labels.append(label)
        arrays[f"{split}_tokens"] = np.array(tokens, np.uint16)
        arrays[f"{split}_labels"] = np.array(labels, np.uint8)
    return arrays


def _chapters(lines: list[str]) -> list[str]:
    """Split at the headings, which go, as does what stands before the first."""
    parts: list[list[str]] = []
    for line in lines:
        if HEADING.match(line):
            parts.append([])
        elif parts:
            parts[-1].append(line)
    return [text for text in map(" ".join, parts) if len(text) > 500]


def _novels(source: Path) -> dict[str, list[str]]:
    """Read R's lazy-load pair: an index of `(offset, length)` and zlib blocks behind a uint32."""
    from rdata.conversion import convert
    from rdata.parser import parse_data

    def read(block: bytes) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it guesses the format of a block without a header
            return convert(parse_data(block))

    index = read(gzip.decompress((source / "Rdata.rdx").read_bytes()))["variables"]
    blocks = (source / "Rdata.rdb").read_bytes()
    return {
        str(name): [str(line) for line in read(zlib.decompress(blocks[at + 4 : at + size]))]
        for name, (at, size) in index.items()
    }
