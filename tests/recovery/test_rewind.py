"""Runs in two parts, masks that hold, rewinding and training from scratch."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import secateur as sec
from secateur.engine.masks import MaskSet, keep_top
from secateur.errors import ConfigError, DataError, PlanError, StoreError
from secateur.recovery import FineTune, FromScratch, Rewind, recovery


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 3))


def loader() -> DataLoader:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(48, 5, generator=generator)
    return DataLoader(TensorDataset(x, x[:, :3].argmax(1)), batch_size=8, shuffle=True)


def quiet(**options) -> FineTune:
    return FineTune(progress=False, **options)


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {n: t.clone() for n, t in model.state_dict().items()}


def same(a: nn.Module, b: nn.Module) -> bool:
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


def masks_of(model: nn.Module, amount: float = 0.7) -> MaskSet:
    return MaskSet(
        {
            n: keep_top(p.detach().abs(), round(p.numel() * (1 - amount)))
            for n, p in model.named_parameters()
            if n in ("0.weight", "3.weight")
        }
    )


@pytest.mark.parametrize("k", [1, 6, 8, 17])
def test_a_run_in_two_parts_is_the_run_where_the_optimizer_remembers_nothing(k):
    whole, parts = net(), net()
    quiet(epochs=3, lr=0.1, momentum=0.0).heal(whole, data=loader())
    first = quiet(epochs=3, lr=0.1, momentum=0.0, stop=k).heal(parts, data=loader())
    second = quiet(epochs=3, lr=0.1, momentum=0.0, start=k).heal(parts, data=loader())
    assert (first["steps"], second["steps"]) == (k, 18 - k)
    assert same(whole, parts)


def test_a_part_is_resumed_and_is_not_taken_for_another(tmp_path):
    quiet(epochs=2, start=3, stop=7, checkpoint=tmp_path).heal(net(), data=loader())
    again = quiet(epochs=2, start=3, stop=7, checkpoint=tmp_path).heal(net(), data=loader())
    assert again["resumed_at"] == 7
    with pytest.raises(StoreError, match="start: 3 there, 4 here"):
        quiet(epochs=2, start=4, stop=7, checkpoint=tmp_path).heal(net(), data=loader())


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_masked_training_is_the_loop_that_multiplies_by_the_mask(optimizer):
    ours, plain = net(), net()
    masks = masks_of(ours)
    batches = [next(iter(loader()))] * 5
    options = {"lr": 0.05, "weight_decay": 0.1, "optimizer": optimizer, "clip": 0.5}
    quiet(schedule="constant", **options).heal(ours, masks, batches)
    kind = torch.optim.AdamW if optimizer == "adamw" else torch.optim.SGD
    more = {} if optimizer == "adamw" else {"momentum": 0.9}
    named = dict(plain.named_parameters())
    step = kind(plain.parameters(), lr=0.05, weight_decay=0.1, **more)
    for x, y in batches:
        for n, m in masks.items():
            named[n].data *= m
        step.zero_grad()
        F.cross_entropy(plain(x), y).backward()
        for n, m in masks.items():
            named[n].grad *= m
        nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        step.step()
    for n, m in masks.items():
        named[n].data *= m
        assert not bool(ours.get_parameter(n)[~m].any())
        assert bool((ours.get_parameter(n)[m] != 0).all())
    for a, b in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    assert all(p._backward_hooks is None or not p._backward_hooks for p in ours.parameters())


def test_a_ticket_starts_from_the_masked_early_weights_bit_for_bit():
    model, seen = net(), []
    early = state(net(3))
    masks = masks_of(model)

    def forward(m, batch):
        seen.append((state(m), batch[1]))
        return m(batch[0])

    base = quiet(epochs=2, lr=0.1, forward=forward)
    report = Rewind(step=8, weights=early, base=base).heal(model, masks, loader())
    assert (report["recovery"], report["rewound"], report["steps"]) == ("rewind", "weights", 4)
    for n, value in seen[0][0].items():
        assert torch.equal(value, early[n] * masks[n] if n in masks else early[n]), n
    targets = [batch[1] for batch in seen]
    seen.clear()
    base.heal(net(), data=loader())
    assert all(torch.equal(a, s[1]) for a, s in zip(targets, seen[8:], strict=True))
    assert report["history"][0]["lr"] == pytest.approx(FINAL_RATE)


# Cosine from 0.1, at step 11 of 12.
FINAL_RATE = 0.05 * (1 + torch.cos(torch.tensor(torch.pi * 11 / 12)).item())


def test_without_weights_only_the_learning_rate_goes_back():
    ours, plain = net(), net()
    Rewind(step=5, base=quiet(epochs=2, lr=0.1)).heal(ours, None, loader())
    quiet(epochs=2, lr=0.1, start=5).heal(plain, None, loader())
    assert same(ours, plain)


def test_channels_are_taken_out_of_the_early_weights():
    dense, x = net(), torch.randn(4, 5)
    early = state(net(9))
    how = Rewind(weights=early, base=quiet(epochs=1, lr=1e-12))
    result = sec.prune(dense, x, amount=0.5, data=loader(), recovery=how)
    other = net()
    other.load_state_dict(early)
    expected = result.plan.apply(other)
    for a, b in zip(result.model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=0)
    assert same(dense, net())


def test_weights_are_read_from_a_file(tmp_path):
    from safetensors.torch import save_file

    save_file(state(net(9)), tmp_path / "early.safetensors")
    ours, plain = net(), net()
    base = quiet(epochs=1)
    Rewind(weights=str(tmp_path / "early.safetensors"), base=base).heal(ours, None, loader())
    Rewind(weights=state(net(9)), base=base).heal(plain, None, loader())
    assert same(ours, plain)


def test_from_scratch_draws_the_layers_own_first_weights():
    model, fresh = net(), net(4)
    FromScratch(seed=4, base=quiet(epochs=1, lr=1e-12)).heal(model, masks_of(model), loader())
    masks = masks_of(net())
    for n, p in model.named_parameters():
        first = fresh.get_parameter(n).detach()
        torch.testing.assert_close(p.detach(), first * masks[n] if n in masks else first)
    built = net()
    torch.manual_seed(4)
    how = FromScratch(build=lambda: net(4), base=quiet(epochs=1, lr=1e-12))
    small = sec.prune(built, torch.randn(4, 5), amount=0.5, data=loader(), recovery=how)
    expected = small.plan.apply(net(4))
    for a, b in zip(small.model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=0)


def test_what_cannot_be_is_one_error_and_the_model_stays(tmp_path):
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(5))
            self.layer = nn.Linear(5, 3)

        def forward(self, x):
            return self.layer(x * self.scale)

    model, other = net(), Own()
    masks = MaskSet({"absent": torch.ones(2, 2, dtype=torch.bool)})
    nan = [(torch.full((8, 5), torch.nan), torch.zeros(8, dtype=torch.long))] * 2
    cases = [
        (ConfigError, "scale belongs to a Own", other, FromScratch(base=quiet()), None, loader()),
        (ConfigError, "not those of the dense", model, Rewind(weights={}, base=quiet()), None,
         loader()),
        (ConfigError, "ends at step 6", model, Rewind(step=6, base=quiet()), None, loader()),
        (ConfigError, "base.start=", model, Rewind(base=quiet(start=2)), None, loader()),
        (DataError, "has a length", model, quiet(steps=9, start=3), None,
         (b for b in loader())),
        (DataError, "finite", model, Rewind(weights=state(net(1)), base=quiet()), None, nan),
        (PlanError, "absent", model, quiet(), masks, loader()),
        (StoreError, "does not hold weights", model,
         Rewind(weights=tmp_path / "no", base=quiet()), None, loader()),
    ]  # fmt: skip
    for kind, words, subject, how, plan, data in cases:
        before = copy.deepcopy(subject)
        with pytest.raises(kind, match=words):
            how.heal(subject, plan, data)
        assert same(subject, before)
    plan = sec.plan(sec.trace(model, torch.randn(4, 5)), amount=0.5)
    with pytest.raises(DataError, match="teacher="):
        Rewind(weights=state(net()), base=quiet()).heal(plan.apply(model), plan, loader())
    assert recovery("rewind", step=3, base={"epochs": 2}).base.epochs == 2
