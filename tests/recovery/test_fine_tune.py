"""Fine-tuning equals the loop written out, and says clearly what it cannot do."""

import copy
import json
import logging
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from secateur.errors import ConfigError, DataError
from secateur.recovery import FineTune


def batches(count=6, size=8, classes=3):
    generator = torch.Generator().manual_seed(0)
    xs = torch.randn(count, size, 5, generator=generator)
    return [(x, x[:, :classes].argmax(1)) for x in xs]


def net(seed=0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 3))


def quiet(**options) -> FineTune:
    return FineTune(progress=False, **options)


def same(a, b) -> bool:
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


@pytest.mark.parametrize("schedule", ["cosine", "one-cycle", "constant"])
def test_it_is_the_plain_loop_with_torchs_own_schedulers(schedule):
    ours, plain = net(), net()
    report = quiet(epochs=2, lr=0.1, schedule=schedule, clip=0.5).heal(ours, data=batches())
    optimizer = torch.optim.SGD(plain.parameters(), 0.1, momentum=0.9)
    lr = torch.optim.lr_scheduler
    scheduler = {
        "cosine": lambda: lr.CosineAnnealingLR(optimizer, 12),
        "one-cycle": lambda: lr.OneCycleLR(
            # torch ends its rise at 0.3 * total - 1 and its fall at total - 1
            optimizer, 0.1, total_steps=13, pct_start=4.6 / 13, cycle_momentum=False,
            final_div_factor=1e12,
        ),
        "constant": lambda: lr.ConstantLR(optimizer, factor=1),
    }[schedule]()  # fmt: skip
    for x, y in batches() * 2:
        optimizer.zero_grad()
        F.cross_entropy(plain(x), y).backward()
        nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        optimizer.step()
        scheduler.step()
    for a, b in zip(ours.state_dict().values(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert report["steps"] == 12
    assert [row["step"] for row in report["history"]] == [6, 12]
    json.dumps(report)


def test_it_learns_and_leaves_modes_and_gradients_as_they_were():
    model = net()
    model[1].eval()
    report = quiet(epochs=10, lr=0.1).heal(model, data=batches())
    losses = [row["loss"] for row in report["history"]]
    assert losses[-1] < 0.5 * losses[0]
    assert not model[1].training
    assert model[0].training
    assert all(p.grad is None for p in model.parameters())


def test_a_parameter_that_is_frozen_stays():
    model = net()
    model[0].requires_grad_(False)
    before = copy.deepcopy(model[0].state_dict())
    quiet(lr=0.1).heal(model, data=batches())
    assert all(torch.equal(v, before[k]) for k, v in model[0].state_dict().items())


def test_batches_may_be_dicts_whose_output_holds_the_loss():
    class HuggingFaceLike(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(5, 3)

        def forward(self, values, labels=None):
            logits = self.head(values)
            return SimpleNamespace(logits=logits, loss=2 * F.cross_entropy(logits, labels))

    torch.manual_seed(0)
    model, plain = HuggingFaceLike(), None
    plain = copy.deepcopy(model)
    x, y = batches()[0]
    report = quiet(lr=0.1).heal(model, data=[{"values": x, "labels": y}])
    loss = plain(x, y).loss
    loss.backward()
    assert report["history"][0]["loss"] == pytest.approx(loss.item())
    torch.testing.assert_close(model.head.weight, plain.head.weight - 0.1 * plain.head.weight.grad)


def test_a_text_classifier_learns_its_labels_and_asks_for_them():
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    model = BertForSequenceClassification(
        BertConfig(
            hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
            vocab_size=20, num_labels=3, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        )
    )  # fmt: skip
    ids = torch.randint(0, 20, (8, 6))
    with pytest.raises(DataError, match=r"labels that the model turns into output\.loss"):
        quiet(lr=0.1).heal(model, data=[{"input_ids": ids}])
    report = quiet(lr=0.1, epochs=20).heal(
        model, data=[{"input_ids": ids, "labels": ids[:, 0] % 3}]
    )
    losses = [row["loss"] for row in report["history"]]
    assert losses[-1] < 0.5 * losses[0]


def test_odd_batches_are_handled_by_forward_and_loss():
    data = [SimpleNamespace(x=x, y=y) for x, y in batches()]
    with pytest.raises(DataError, match="forward=lambda"):
        quiet().heal(net(), data=data)
    ours, plain = net(), net()
    how = quiet(
        forward=lambda model, batch: model(batch.x),
        loss=lambda output, batch: F.cross_entropy(output, batch.y),
    )
    how.heal(ours, data=data)
    quiet().heal(plain, data=batches())
    assert same(ours, plain)


def test_default_losses_follow_the_target():
    x = torch.randn(4, 5)
    tokens = nn.Sequential(nn.Embedding(7, 5), nn.Linear(5, 7))
    ids = torch.randint(0, 7, (3, 6))
    expected = F.cross_entropy(tokens(ids).flatten(0, 1), ids.flatten()).item()
    report = quiet().heal(tokens, data=[(ids, ids)])
    assert report["history"][0]["loss"] == pytest.approx(expected)
    line = nn.Linear(5, 1)
    expected = F.mse_loss(line(x)[:, 0], x[:, 0]).item()
    assert quiet().heal(line, data=[(x, x[:, 0])])["history"][0]["loss"] == pytest.approx(expected)


def test_a_batch_with_nan_is_skipped_and_said_and_leaves_no_trace(caplog):
    good = batches()
    bad = (torch.full((8, 5), math.nan), good[0][1])
    ours, plain = net(), net()
    how = quiet(steps=7, schedule="constant")
    with caplog.at_level(logging.WARNING, logger="secateur"):
        report = how.heal(ours, data=[*good[:2], bad, *good[2:]])
    quiet(steps=6, schedule="constant").heal(plain, data=good)
    assert report["skipped"] == 1
    assert "step 2 skipped" in caplog.text
    assert same(ours, plain)


def test_many_bad_losses_in_a_row_give_up_and_give_the_model_back():
    data = [*batches(4), *[(torch.full((8, 5), math.inf), torch.zeros(8).long())] * 12]
    model = net()
    with pytest.raises(DataError, match="10 batches in a row, up to step 13"):
        quiet(lr=0.1).heal(model, data=data)
    assert same(model, net())


def test_an_epoch_without_one_good_batch_gives_up():
    data = [(torch.full((8, 5), math.nan), torch.zeros(8).long())] * 3
    with pytest.raises(DataError, match="no batch of epoch 0 gave a finite loss"):
        quiet().heal(net(), data=data)


def test_weights_that_are_not_finite_are_named():
    model = net()
    model[3].weight.data[0, 0] = math.nan
    with pytest.raises(DataError, match=r"3\.weight of Sequential holds NaN"):
        quiet().heal(model, data=batches())


def test_early_stopping_gives_back_the_best_epoch():
    scores, seen = iter([1.0, 5.0, 2.0, 3.0, 9.0]), []
    model = net()

    def evaluate(m):
        assert not m.training
        seen.append(copy.deepcopy(m.state_dict()))
        return next(scores)

    report = quiet(epochs=5, early_stop=2, evaluate=evaluate).heal(model, data=batches())
    assert report["stopped_early"]
    assert [row["score"] for row in report["history"]] == [1.0, 5.0, 2.0, 3.0]
    assert all(torch.equal(v, seen[1][k]) for k, v in model.state_dict().items())


def test_the_best_weights_come_back_even_if_all_epochs_ran():
    scores, seen = iter([1.0, 5.0, 2.0]), []
    model = net()

    def evaluate(m):
        seen.append(copy.deepcopy(m.state_dict()))
        return next(scores)

    report = quiet(epochs=3, early_stop=3, evaluate=evaluate).heal(model, data=batches())
    assert not report["stopped_early"]
    assert all(torch.equal(v, seen[1][k]) for k, v in model.state_dict().items())


def test_mixed_precision_trains():
    model = net()
    report = quiet(epochs=2, lr=0.1, amp=True).heal(model, data=batches(2, 4))
    assert model[0].weight.dtype == torch.float32
    assert report["history"][1]["loss"] < report["history"][0]["loss"]


def test_an_optimizer_may_be_a_callable():
    model, before = net(), net()
    quiet(optimizer=torch.optim.Adagrad, lr=0.05).heal(model, data=batches())
    quiet(optimizer=lambda parameters: torch.optim.Adagrad(parameters, lr=0.05)).heal(
        before, data=batches()
    )
    assert same(model, before)


def test_the_bar_shows_the_loss_on_standard_error(capsys):
    FineTune().heal(net(), data=batches())
    captured = capsys.readouterr()
    assert "6/6" in captured.err
    assert "loss" in captured.err
    assert captured.out == ""


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "needs data, got NoneType"),
        ([], "empty"),
        (DataLoader(TensorDataset(torch.zeros(3, 5)), batch_size=8, drop_last=True), "drop_last"),
        ([torch.zeros(8, 5)], "no loss follows from the batch"),
        ([(torch.zeros(8, 4), torch.zeros(8).long())], r"float32\[8, 4\]"),
        ([(torch.zeros(8, 5), torch.zeros(7).long())], r"target int64\[7\] failed"),
        ([(torch.zeros(8, 5), torch.full((8,), 3))], "out of bounds"),
        ([(torch.zeros(8, 5), torch.zeros(8, 7))], r"\[8, 3\] and \[8, 7\] differ"),
        ([{"pixels": torch.zeros(8, 5)}], "pixels: float32"),
        ([(torch.zeros(8, 5), "label")], "no loss follows"),
    ],
)  # fmt: skip
def test_data_that_do_not_fit_are_one_clear_error(data, message):
    model = net()
    with pytest.raises(DataError, match=message):
        quiet().heal(model, data=data)
    assert same(model, net())
    assert model.training


def test_wrong_data_in_the_middle_give_the_model_back():
    model = net()
    with pytest.raises(DataError, match="could not be run"):
        quiet(lr=1.0).heal(model, data=[*batches(), (torch.zeros(8, 9), torch.zeros(8).long())])
    assert same(model, net())


def test_a_generator_is_refused_for_several_epochs_and_fine_for_one():
    with pytest.raises(DataError, match="read only once"):
        quiet(epochs=2).heal(net(), data=iter(batches()))
    with pytest.raises(DataError, match="say how long to train with steps="):
        quiet().heal(net(), data=iter(batches()))
    with pytest.raises(DataError, match="epoch 1 yielded no batch"):
        quiet(steps=9).heal(net(), data=iter(batches()))
    assert quiet(steps=6).heal(net(), data=iter(batches()))["steps"] == 6


def test_an_endless_data_set_needs_steps():
    class Endless(IterableDataset):
        def __iter__(self):
            while True:
                yield torch.randn(5), 1

    data = DataLoader(Endless(), batch_size=4)
    with pytest.raises(DataError, match="steps="):
        quiet().heal(net(), data=data)
    assert quiet(steps=5).heal(net(), data=data)["steps"] == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "adam"}, "'sgd', 'adamw' or a callable"),
        ({"schedule": "step"}, "'one-cycle'"),
        ({"epochs": 0}, "epochs=0"),
        ({"lr": -1.0}, "above 0"),
        ({"clip": 0.0}, "clip"),
    ],
)
def test_options_out_of_range_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        quiet(**options).heal(net(), data=batches())


def test_a_loss_must_be_one_number_with_a_gradient():
    with pytest.raises(DataError, match="one number"):
        quiet(loss=lambda o, t: o).heal(net(), data=batches())
    with pytest.raises(DataError, match="no trainable parameter"):
        quiet(loss=lambda o, t: o.detach().sum()).heal(net(), data=batches())
    with pytest.raises(ConfigError, match="requires_grad_"):
        quiet().heal(net().requires_grad_(False), data=batches())
