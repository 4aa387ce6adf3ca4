"""A record of a real run: a small network on handwritten digits, pruned and healed in a second."""

import copy

import pytest
import torch
from hostile import HOSTILE
from sklearn.datasets import load_digits
from torch import Tensor, nn

from secateur import report
from secateur.measure import measure


def network(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))


def remove(model: nn.Sequential, amount: float) -> tuple[nn.Sequential, Tensor]:
    """Remove the hidden units with the smallest weights, by hand."""
    weight = model[0].weight
    keep = weight.abs().sum(1).topk(round(len(weight) * (1 - amount))).indices.sort().values
    small = network(len(keep))
    with torch.no_grad():
        small[0].weight.copy_(weight[keep])
        small[0].bias.copy_(model[0].bias[keep])
        small[2].weight.copy_(model[2].weight[:, keep])
        small[2].bias.copy_(model[2].bias)
    return small, keep


@pytest.fixture(scope="session")
def record() -> report.Record:
    """Everything that a record can hold, all of it measured here."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    digits = load_digits()
    x, y = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
    history: list[report.Step] = []

    def accuracy(model: nn.Module) -> float:
        with torch.no_grad():
            return (model(x[1300:]).argmax(1) == y[1300:]).float().mean().item()

    def train(model: nn.Module, steps: int) -> None:
        optimizer = torch.optim.Adam(model.parameters(), 0.01)
        history.clear()
        for step in range(steps):
            batch = torch.randint(1300, (64,))
            loss = nn.functional.cross_entropy(model(x[batch]), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            history.append(report.Step(step + 1, loss.item()))

    dense = network(48)
    train(dense, 150)
    found = {}
    for amount in (0.25, 0.5, 0.75):
        small, keep = remove(dense, amount)
        unhealed = copy.deepcopy(small)
        train(small, 60)
        found[amount] = small, keep, unhealed, measure(small, x[:64], against=dense, repeats=10)
    small, keep, unhealed, measured = found[0.5]
    masked = copy.deepcopy(dense)
    with torch.no_grad():
        gone = torch.ones(48, dtype=torch.bool)
        gone[keep] = False
        masked[2].weight[:, gone] = 0
        expected = masked(x)
        error = ((unhealed(x) - expected).norm() / expected.norm()).item()
    assert measured.against is not None
    histogram = report.histogram(dense)
    return report.Record(
        title="Digits, half of the hidden units",
        model="network(48)",
        before=report.State.of(measured.against.dense, accuracy(dense)),
        unhealed=report.State.of(measure(unhealed, x[:64], repeats=0), accuracy(unhealed)),
        after=report.State.of(measured, accuracy(small)),
        command="python prune.py --amount 0.5",
        seed=0,
        settings={"criterion": "l1", "amount": 0.5, "global": True, "extra": None},
        environment={"torch": torch.__version__, "threads": 1},
        data=report.Data("scikit-learn digits", "sha256:00"),
        metric=report.Metric("top-1 accuracy"),
        proof=report.Proof(error, exact=True),
        layers=(report.Layer("0", "units", 48, len(keep)),),
        weights=report.Weights(
            histogram,
            report.histogram(unhealed, like=histogram),
            report.histogram(small, like=histogram),
        ),
        sensitivity=(
            report.Curve(
                "0", tuple((a, accuracy(remove(dense, a)[0])) for a in (0.0, 0.3, 0.6, 0.9))
            ),
        ),
        pareto=tuple(
            report.Point(amount, accuracy(model), cost.against.speedup.ratio, amount == 0.5)
            for amount, (model, _, _, cost) in found.items()
            if cost.against and cost.against.speedup
        ),
        locked=(report.Locked("2.weight", "its output leaves the model: 10 classes"),),
        notes=("Accuracy is of one seed.",),
        history=tuple(history),
    )


@pytest.fixture
def hostile(record: report.Record) -> report.Record:
    """The same record with every text from outside replaced by something nasty."""
    values = record.to_dict()
    everything = " ".join(HOSTILE)
    values["title"], values["model"], values["command"] = HOSTILE[0], HOSTILE[1], everything
    values["metric"]["name"] = HOSTILE[0]
    values["proof"] = {"error": None, "exact": False, "statement": everything}
    values["data"] = {"description": everything, "hash": HOSTILE[6]}
    values["settings"] = dict.fromkeys(HOSTILE, HOSTILE[1])
    values["environment"] = dict.fromkeys(HOSTILE, HOSTILE[0])
    values["layers"] = [  # so many that they are listed and drawn
        {"name": name, "kind": name, "before": 9, "after": 4} for name in HOSTILE * 4
    ]
    points = values["sensitivity"][0]["points"]
    values["sensitivity"] = [{"name": name, "points": points} for name in HOSTILE]
    for point in values["pareto"]:
        point["label"] = HOSTILE[1]
    values["locked"] = [{"name": name, "reason": name} for name in HOSTILE]
    values["notes"] = list(HOSTILE)
    return report.Record.from_dict(values)
