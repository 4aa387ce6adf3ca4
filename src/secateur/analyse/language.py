"""Language models before and after: pinned texts, perplexity, a choice task, a sample of text."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.engine.batches import run
from secateur.errors import ConfigError, DataError
from secateur.measure.calling import device_of, evaluating


@dataclass(frozen=True)
class Windows:
    """Pieces of a text of the same length, and what they were made from.

    Attributes:
        ids: ``(number, length)``, tokens.
        record: Source, hash of the text, tokenizer, length, number and how they were chosen.
    """

    ids: Tensor
    record: Mapping[str, Any]

    def batches(self, size: int = 1) -> list[dict[str, Tensor]]:
        """As ``sparsify`` and every Hugging Face model take them."""
        return [{"input_ids": part} for part in self.ids.split(size)]


@dataclass(frozen=True)
class Choices:
    """Questions with one right ending among several of the same length.

    Attributes:
        ids: ``(questions, endings, length)``: the context, then an ending.
        answers: ``(questions,)``, which ending is right.
        context: How many of the tokens are context.
        record: As of ``Windows``.
    """

    ids: Tensor
    answers: Tensor
    context: int
    record: Mapping[str, Any]


def calibration(
    tokenizer: Any, text: str, *, number: int = 16, length: int = 512, seed: int = 0,
    source: str = "",
) -> Windows:  # fmt: skip
    """Pieces from random places of a text, the same ones for the same seed on every machine.

    Args:
        tokenizer: Called with a text as those of Hugging Face are; adds no special tokens here.
        text: The part of a corpus that is for calibration.
        number, length: How many pieces of how many tokens.
        seed: Of the places.
        source: Name of the text, for the record.

    Raises:
        DataError: The text is shorter than one piece.

    Example:
        >>> pieces = calibration(letters, "a text to calibrate on", number=2, length=4)
        >>> pieces.ids.shape, pieces.record["seed"]
        (torch.Size([2, 4]), 0)
    """
    ids = _tokens(tokenizer, text, length)
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(len(ids) - length + 1, (number,), generator=generator)
    picked = ids[starts[:, None] + torch.arange(length)]
    return Windows(picked, _record(tokenizer, text, source, number, length) | {"seed": seed})


def held_out(
    tokenizer: Any, text: str, *, number: int = 8, length: int = 512, source: str = ""
) -> Windows:
    """Windows that do not overlap, spread evenly over a text that calibration has not seen.

    Args:
        tokenizer, text, number, length, source: As for ``calibration``.

    Raises:
        DataError: The text is too short for so many windows.

    Example:
        >>> held_out(letters, "abcdefgh", number=2, length=3).ids.tolist()
        [[97, 98, 99], [100, 101, 102]]
    """
    ids = _tokens(tokenizer, text, length * number)
    cut = ids[: len(ids) // length * length].view(-1, length)
    picked = cut[torch.arange(number) * len(cut) // number]
    return Windows(picked, _record(tokenizer, text, source, number, length))


def cloze(
    tokenizer: Any, text: str, *, number: int = 40, context: int = 24, ending: int = 8,
    endings: int = 4, seed: int = 0, source: str = "",
) -> Choices:  # fmt: skip
    """Questions out of a text: how does this passage go on, and how do other passages?

    The wrong endings come from other questions, so that every ending is a real one.

    Args:
        tokenizer, text, source: As for ``calibration``; the text must be held out.
        number: Questions.
        context, ending: Tokens of the passage and of each ending.
        endings: How many there are to choose from.
        seed: Of the wrong endings and of the order.

    Raises:
        ConfigError: There are fewer questions than endings.
        DataError: The text is too short.

    Example:
        >>> questions = cloze(letters, "abcdefgh" * 9, number=4, context=3, ending=2, endings=2)
        >>> questions.ids.shape
        torch.Size([4, 2, 5])
    """
    if not 2 <= endings <= number:
        raise ConfigError(f"endings={endings}: choose from 2 to {number}, the number of questions")
    passages = held_out(tokenizer, text, number=number, length=context + ending, source=source)
    generator = torch.Generator().manual_seed(seed)
    ids = passages.ids[:, None].repeat(1, endings, 1)
    # Question i offers the endings of i and of `endings - 1` others, in a random order.
    others = torch.stack([torch.randperm(number - 1, generator=generator) for _ in range(number)])
    offered = (others[:, : endings - 1] + 1 + torch.arange(number)[:, None]) % number
    answers = torch.randint(endings, (number,), generator=generator)
    wrong = torch.arange(endings)[None] != answers[:, None]
    ids[wrong] = torch.cat(
        [ids[wrong][:, :context], passages.ids[offered.flatten(), context:]], dim=1
    )
    record = {**passages.record, "context": context, "endings": endings, "seed": seed}
    return Choices(ids, answers, context, record)


def perplexity(model: nn.Module, windows: Windows, *, batch: int = 1) -> float:
    r"""$\exp\left(-\frac1N \sum \log p(x_t \mid x_{<t})\right)$ over all tokens but the first ones.

    Each window is read by itself, so numbers of windows of different length do not compare.

    Args:
        model: Gives logits ``(batch, tokens, vocabulary)``, or an output that has them.
        windows: Of ``held_out``.
        batch: Windows at once.

    Raises:
        DataError: A token that the model does not know, or logits that are not finite.

    Example:
        >>> round(perplexity(uniform, Windows(torch.zeros(2, 4, dtype=torch.long), {})))
        128
    """
    parts = [_likelihoods(model, ids) for ids in windows.ids.split(batch)]
    return float(torch.cat(parts).double().mean().neg().exp())


def accuracy(model: nn.Module, choices: Choices) -> float:
    """How often the right ending is the likeliest one given the context.

    Args:
        model: As for ``perplexity``.
        choices: Of ``cloze``.

    Raises:
        DataError: As for ``perplexity``.

    Example:
        >>> questions = Choices(torch.zeros(1, 2, 4, dtype=torch.long), torch.tensor([0]), 2, {})
        >>> accuracy(uniform, questions)
        1.0
    """
    sums = [_likelihoods(model, ids)[:, choices.context - 1 :].sum(1) for ids in choices.ids]
    return float((torch.stack(sums).argmax(1) == choices.answers).double().mean())


def continuations(
    models: Mapping[str, Any], tokenizer: Any, prompts: Sequence[str], *, tokens: int = 40
) -> list[dict[str, str]]:
    """How each model goes on with each prompt, the likeliest token at a time.

    Args:
        models: By name, as ``{"dense": model, "pruned": result.model}``; each has ``generate``.
        tokenizer: Theirs, of Hugging Face.
        prompts: Beginnings of texts.
        tokens: How many are generated.
    """
    rows = []
    for prompt in prompts:
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        row = {"prompt": prompt}
        for name, model in models.items():
            with evaluating(model), torch.no_grad():
                here = ids.to(device_of(model))
                out = model.generate(
                    here,
                    attention_mask=torch.ones_like(here),
                    max_new_tokens=tokens,
                    do_sample=False,
                    pad_token_id=tokenizer.eos_token_id,
                )
            row[name] = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
        rows.append(row)
    return rows


def _likelihoods(model: nn.Module, ids: Tensor) -> Tensor:
    """Log-likelihoods of the tokens after the first, ``(batch, length - 1)``."""
    words = getattr(model, "get_input_embeddings", lambda: None)()
    known = getattr(words, "num_embeddings", None)
    if known is not None and int(ids.max()) >= known:
        raise DataError(
            f"the text has the token {int(ids.max())}, but the model knows {known}: tokenize it "
            "with the model's own tokenizer"
        )
    ids = ids.to(device_of(model))
    with evaluating(model), torch.no_grad():
        output = run(model, {"input_ids": ids} if words is not None else ids)
    logits = getattr(output, "logits", output)[:, :-1].float()
    found = -F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    if not bool(found.isfinite().all()):
        raise DataError(
            "the model's logits are NaN or infinite on this text: run it in float32, and look for "
            "broken weights"
        )
    return found.cpu()


def _tokens(tokenizer: Any, text: str, least: int) -> Tensor:
    """All tokens of a text, which must have some number of them."""
    ids = torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"], dtype=torch.long)
    if len(ids) < max(least, 1):
        raise DataError(
            f"the text has {len(ids)} tokens, but {least} are needed: give a longer one, or ask "
            "for fewer or shorter pieces"
        )
    return ids


def _record(tokenizer: Any, text: str, source: str, number: int, length: int) -> dict[str, Any]:
    vocabulary: dict[str, int] = getattr(tokenizer, "get_vocab", dict)()
    spelled = "\n".join(f"{k}\t{v}" for k, v in sorted(vocabulary.items()))
    return {
        "source": source,
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
        "tokenizer": type(tokenizer).__name__,
        "vocabulary": len(vocabulary),
        "vocabulary_sha256": hashlib.sha256(spelled.encode()).hexdigest(),
        "number": number,
        "length": length,
    }
