"""LSTM, GRU and RNN: stacked, bidirectional, projected, packed, cells, and inside classifiers."""

from collections.abc import Iterator

import torch
from benchmarks.coverage.case import Built, Case
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

KINDS = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}
WORDS = torch.randint(0, 50, (3, 11), generator=torch.Generator().manual_seed(0))


class Tagger(nn.Module):
    """Embedding, recurrent layers, and a label for every word."""

    def __init__(self, kind: str, **options: bool | int) -> None:
        super().__init__()
        options = {"batch_first": True} | options
        self.embed = nn.Embedding(50, 20)
        self.recurrent = KINDS[kind](20, 24, **options)
        width = options.get("proj_size", 24) * (2 if options.get("bidirectional") else 1)
        self.label = nn.Linear(width, 7)

    def forward(self, words: Tensor) -> Tensor:
        embedded = self.embed(words)
        if not self.recurrent.batch_first:
            embedded = embedded.transpose(0, 1)
        out = self.label(self.recurrent(embedded)[0])
        return out if self.recurrent.batch_first else out.transpose(0, 1)


class LastState(Tagger):
    """Classifies a sentence from the last hidden states of both directions."""

    def forward(self, words: Tensor) -> Tensor:
        state = self.recurrent(self.embed(words))[1]
        hidden = state[0] if isinstance(state, tuple) else state
        return self.label(torch.cat([hidden[-2], hidden[-1]], -1))


class PackedTagger(Tagger):
    """Sentences of different lengths, packed."""

    def forward(self, words: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(
            self.embed(words), lengths, batch_first=True, enforce_sorted=False
        )
        out, _ = pad_packed_sequence(self.recurrent(packed)[0], batch_first=True)
        return self.label(out)


class Seq2Seq(nn.Module):
    """Encoder, decoder started from its state, and dot-product attention between them."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 20)
        self.encoder = nn.GRU(20, 24, batch_first=True)
        self.decoder = nn.GRU(20, 24, batch_first=True)
        self.mix = nn.Linear(48, 32)
        self.out = nn.Linear(32, 50)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        memory, state = self.encoder(self.embed(source))
        decoded, _ = self.decoder(self.embed(target), state)
        weights = (decoded @ memory.transpose(1, 2)).softmax(-1)
        return self.out(self.mix(torch.cat([decoded, weights @ memory], -1)).tanh())


class CellLoop(nn.Module):
    """A recurrent cell stepped by a Python loop."""

    def __init__(self, cell: type[nn.Module]) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 20)
        self.cell = cell(20, 24)
        self.label = nn.Linear(24, 7)

    def forward(self, words: Tensor) -> Tensor:
        state = None
        for step in self.embed(words).unbind(1):
            state = self.cell(step, state)
        return self.label(state[0] if isinstance(state, tuple) else state)


class ConvRecurrent(nn.Module):
    """Speech-like: convolutions over time, recurrent layers, a score per frame."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv1d(13, 16, 5, 2, 2), nn.BatchNorm1d(16), nn.ReLU(), nn.Conv1d(16, 24, 3, 1, 1)
        )
        self.recurrent = nn.LSTM(24, 32, 2, bidirectional=True)
        self.score = nn.Linear(64, 9)

    def forward(self, frames: Tensor) -> Tensor:
        features = self.conv(frames).relu().permute(2, 0, 1)
        return self.score(self.recurrent(features)[0]).log_softmax(-1)


def cases() -> Iterator[Case]:
    """Yield every kind in every arrangement."""
    arrangements = {
        "one": {},
        "stacked": {"num_layers": 3},
        "bidirectional": {"bidirectional": True},
        "stacked_bidirectional": {"num_layers": 2, "bidirectional": True},
        "time_first": {"batch_first": False},
        "no_bias": {"bias": False},
    }
    for kind in KINDS:
        for name, options in arrangements.items():
            yield case(f"{kind}_{name}", Tagger, kind, **options)
        yield case(f"{kind}_last_state", LastState, kind, bidirectional=True)
        yield Case(
            "recurrent",
            f"{kind}_packed",
            lambda kind=kind: (
                PackedTagger(kind, bidirectional=True).eval(),
                (WORDS, torch.tensor([11, 5, 8])),
                {},
            ),
        )
    yield case("lstm_projected", Tagger, "lstm", proj_size=10)
    for cell in (nn.LSTMCell, nn.GRUCell, nn.RNNCell):
        yield case(f"{cell.__name__.lower()}_loop", CellLoop, cell)
    yield Case("recurrent", "seq2seq", lambda: (Seq2Seq().eval(), (WORDS, WORDS[:, :7]), {}))
    yield Case(
        "recurrent",
        "conv_lstm_ctc",
        lambda: (ConvRecurrent().eval(), (torch.randn(3, 13, 29),), {}),
    )


def case(name: str, network: type[nn.Module], *args: object, **options: object) -> Case:
    """Make a case of a network that takes words only."""

    def build() -> Built:
        return network(*args, **options).eval(), (WORDS,), {}

    return Case("recurrent", name, build)
