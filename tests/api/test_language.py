"""Perplexity, choices and pinned texts, against the same things written out."""

import doctest
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from secateur.analyse import language
from secateur.errors import ConfigError, DataError


def letters(text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
    """A tokenizer whose tokens are the characters' numbers."""
    return {"input_ids": [ord(c) for c in text]}


class Uniform(nn.Module):
    """Finds everything equally likely."""

    def forward(self, ids: Tensor) -> Tensor:
        return torch.zeros(*ids.shape, 128)


def llama() -> Any:
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 128}
    return LlamaForCausalLM(LlamaConfig(**shape, **heads, max_position_embeddings=64)).eval()


TEXT = "the quick brown fox jumps over the lazy dog, and the dog does not mind at all. " * 4


def test_examples_run() -> None:
    tests = doctest.DocTestFinder().find(
        language, globs={**vars(language), "letters": letters, "uniform": Uniform()}
    )
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    assert sum(runner.run(test).attempted for test in tests) >= 5 and not runner.failures


@pytest.mark.parametrize("batch", [1, 3])
def test_perplexity_is_the_mean_likelihood_token_by_token(batch: int) -> None:
    model, windows = llama(), language.held_out(letters, TEXT, number=3, length=16)
    losses = []
    for row in windows.ids:
        for t in range(1, 16):
            with torch.no_grad():
                chances = model(row[None, :t]).logits[0, -1].softmax(0)
            losses.append(-math.log(chances[row[t]]))
    expected = math.exp(sum(losses) / len(losses))
    assert language.perplexity(model, windows, batch=batch) == pytest.approx(expected, rel=1e-4)
    assert language.perplexity(Uniform(), windows) == pytest.approx(128, rel=1e-5)


def test_windows_do_not_overlap_and_reach_to_the_end_of_the_text() -> None:
    windows = language.held_out(letters, TEXT, number=5, length=10)
    starts = [TEXT.find("".join(chr(i) for i in row)) for row in windows.ids.tolist()]
    assert -1 not in starts
    few = language.held_out(letters, "".join(chr(i) for i in range(100)), number=5, length=10)
    assert few.ids[:, 0].tolist() == [0, 20, 40, 60, 80]


def test_calibration_is_pinned_by_its_seed_and_recorded() -> None:
    one, same, other = (language.calibration(letters, TEXT, number=4, seed=s, length=8, source="x")
                        for s in (0, 0, 1))  # fmt: skip
    assert torch.equal(one.ids, same.ids) and not torch.equal(one.ids, other.ids)
    assert one.record == same.record and one.record["source"] == "x"
    assert len(one.record["sha256"]) == 64
    assert [b["input_ids"].shape for b in one.batches(3)] == [(3, 8), (1, 8)]
    assert all("".join(chr(i) for i in row) in TEXT for row in one.ids.tolist())


class Remembers(nn.Module):
    """Finds likely what follows in the one text that it knows."""

    def forward(self, ids: Tensor) -> Tensor:
        logits = torch.zeros(*ids.shape, 128)
        for b, row in enumerate(ids.tolist()):
            for t in range(2, len(row) + 1):
                at = NUMBERS.find("".join(chr(i) for i in row[t - 2 : t]))
                if 0 <= at < len(NUMBERS) - 2:
                    logits[b, t - 1, ord(NUMBERS[at + 2])] = 9.0
        return logits


NUMBERS = "".join(chr(32 + i % 90) + chr(32 + i // 90 + i % 7) for i in range(270))


def test_who_knows_the_text_chooses_right_and_who_knows_nothing_by_chance() -> None:
    questions = language.cloze(letters, NUMBERS, number=12, context=20, ending=6, endings=3)
    assert language.accuracy(Remembers(), questions) == 1.0
    right = questions.ids[torch.arange(12), questions.answers]
    for row, offered in zip(right, questions.ids, strict=True):
        assert "".join(chr(i) for i in row.tolist()) in NUMBERS
        assert len({tuple(o.tolist()) for o in offered}) == 3
        assert bool((offered[:, :20] == row[:20]).all())
    assert len(questions.answers.unique()) == 3
    # Of equals the first is taken: right as often as the right ending happens to be first.
    first = float((questions.answers == 0).double().mean())
    assert language.accuracy(Uniform(), questions) == first


def test_what_cannot_be_evaluated_is_named() -> None:
    for make in (language.calibration, language.held_out, language.cloze):
        with pytest.raises(DataError, match="longer"):
            make(letters, "short")
    with pytest.raises(ConfigError, match="number of questions"):
        language.cloze(letters, TEXT, number=3, endings=4)
    windows = language.Windows(torch.full((1, 4), 128), {})
    with pytest.raises(DataError, match="own tokenizer"):
        language.perplexity(llama(), windows)
    broken = llama()
    nn.init.constant_(broken.lm_head.weight, torch.nan)
    with pytest.raises(DataError, match="NaN"):
        language.perplexity(broken, language.held_out(letters, TEXT, number=1, length=8))
    # The model is as it was: no mode was changed.
    assert not broken.training


def test_continuations_stand_side_by_side() -> None:
    class Tokenizer:
        eos_token_id = 0

        def __call__(self, text: str, return_tensors: str) -> dict[str, Tensor]:
            return {"input_ids": torch.tensor([[ord(c) for c in text]])}

        def decode(self, ids: Tensor, skip_special_tokens: bool) -> str:
            return "".join(chr(i) for i in ids.tolist())

    model = llama()
    (row,) = language.continuations({"a": model, "b": model}, Tokenizer(), ["once"], tokens=5)
    assert row["prompt"] == "once" and row["a"] == row["b"] and len(row["a"]) <= 5
    ids = [ord(c) for c in "once"]
    for expected in row["a"]:  # greedy, one token at a time
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        assert chr(ids[-1]) == expected
