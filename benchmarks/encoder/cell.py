"""One cell: a method and a target on all-MiniLM-L6-v2, and what its embeddings are worth then."""

from __future__ import annotations

import time
from typing import Any

import torch
from benchmarks.llm import material
from torch import Tensor, nn
from torch.nn import functional as F

import secateur as sec
from secateur import language

HALF = 30  # tokens of a half of a passage, without the two special ones
CALIBRATION, PASSAGES = 128, 256


class Encoder(nn.Module):
    """Means over the tokens of BERT's last hidden states, of length 1.

    With ``labels`` the first half of a batch looks for its other half in the second, as when the
    model was trained: the loss by which ``scope="fisher"`` and masks are judged.
    """

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Map ids ``(texts, tokens)`` to ``embedding`` ``(texts, width)``, and the loss."""
        hidden = self.bert(input_ids=input_ids).last_hidden_state
        found = {"embedding": F.normalize(hidden.mean(1), dim=-1)}
        if labels is not None:
            one, other = found["embedding"].chunk(2)
            found["loss"] = F.cross_entropy(20 * one @ other.T, labels)
        return found


def encoder() -> Encoder:
    """The dense model."""
    from transformers import BertModel

    bert = BertModel.from_pretrained(material.encoder_folder(), add_pooling_layer=False)
    return Encoder(bert.float()).eval()


def halves(pieces: Tensor, tokenizer: Any) -> Tensor:
    """First halves, then second ones, each as a text of its own: ``(2 pieces, HALF + 2)``."""
    ids = torch.cat([pieces[:, :HALF], pieces[:, HALF : 2 * HALF]])
    first, last = (
        torch.full((len(ids), 1), i) for i in (tokenizer.cls_token_id, tokenizer.sep_token_id)
    )
    return torch.cat([first, ids, last], 1)


def given() -> dict[str, Any]:
    """Calibration batches, and the passages of both held-out texts with all their records."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(material.encoder_folder())
    wiki, web = material.text("wiki"), material.text("c4")
    cut = int(0.8 * len(wiki))
    length = 2 * HALF
    windows = {
        "calibration": language.calibration(
            tokenizer, wiki[:cut], number=CALIBRATION, length=length, source="wiki, first 80 %"
        ),
        "wiki": language.held_out(
            tokenizer, wiki[cut:], number=PASSAGES, length=length, source="wiki, last 20 %"
        ),
        "web": language.held_out(tokenizer, web, number=PASSAGES, length=length, source="c4"),
    }
    return {
        "batches": [
            {"input_ids": halves(part, tokenizer), "labels": torch.arange(len(part))}
            for part in windows["calibration"].ids.split(16)
        ],
        "wiki": halves(windows["wiki"].ids, tokenizer),
        "web": halves(windows["web"].ids, tokenizer),
        "records": {name: dict(window.record) for name, window in windows.items()},
    }


@torch.no_grad()
def embeddings(model: nn.Module, ids: Tensor) -> Tensor:
    """Of all texts: ``(texts, width)``."""
    return torch.cat([model(part)["embedding"] for part in ids.split(32)])


def judged(found: Tensor, dense: Tensor) -> dict[str, float]:
    """Mean cosine to the dense embeddings, and how often a first half finds its second.

    Example:
        >>> turned = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.8, 0.6], [0.8, -0.6]])
        >>> judged(turned, turned)
        {'cosine': 1.0, 'retrieval': 0.5}
    """
    one, other = found.chunk(2)
    right = (one @ other.T).argmax(1) == torch.arange(len(one))
    return {
        "cosine": round(float((found * dense).sum(1).mean()), 4),
        "retrieval": round(float(right.float().mean()), 4),
    }


def measure(wanted: dict[str, Any], texts: dict[str, Any], dense: Encoder) -> dict[str, Any]:
    """Prune a copy, judge it by both texts.

    Args:
        wanted: ``method``, and ``goal`` (of ``sec.sparsify``), or ``units`` or ``blocks``
            (an amount of ``sec.prune``).
        texts: As of ``given``.
        dense: The model; left as it is.
    """
    cell, model, batches = dict(wanted), dense, texts["batches"]
    began = time.process_time()
    if "goal" in wanted:
        method = None if wanted["method"] == "default" else wanted["method"]
        found = sec.sparsify(dense, method, **wanted["goal"], data=batches, progress=False)
        model, cell["sparsity"] = found.model, round(found.report.sparsity, 4)
    elif "units" in wanted or "blocks" in wanted:
        result = sec.prune(
            dense,
            {"input_ids": batches[0]["input_ids"][:2]},
            method=wanted["method"],
            amount=wanted.get("units", wanted.get("blocks")),
            data=batches,
            measure=False,
            progress=False,
        )
        model, proof = result.model, result.verification
        cell["proof"] = {"ok": proof.ok, "error": proof.error}
    if wanted["method"] != "dense":
        cell["seconds"] = round(time.process_time() - began, 1)
    cell["parameters"] = sum(p.numel() for p in model.parameters())
    for name in ("wiki", "web"):
        reference = texts.setdefault(f"dense {name}", embeddings(dense, texts[name]))
        cell[name] = judged(embeddings(model, texts[name]), reference)
    return cell
