"""An attachment inside the loops that people write: nothing in them changes."""

import copy
import io
import warnings
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.optim import swa_utils

import secateur as sec
from secateur.engine.masks import MaskSet
from secateur.errors import ConfigError

OPTIMIZERS = {
    "sgd": partial(torch.optim.SGD, lr=0.05),
    "nesterov": partial(torch.optim.SGD, lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-2),
    "adamw": partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1),
    "amsgrad": partial(torch.optim.Adam, lr=0.01, amsgrad=True),
    "fused": partial(torch.optim.AdamW, lr=0.01, fused=True),
    "rmsprop": partial(torch.optim.RMSprop, lr=0.01, momentum=0.9, centered=True),
    "adagrad": partial(torch.optim.Adagrad, lr=0.05, initial_accumulator_value=0.1),
    "adadelta": partial(torch.optim.Adadelta, lr=1.0),
    "adafactor": partial(torch.optim.Adafactor, lr=0.01),
    "rprop": partial(torch.optim.Rprop, lr=0.01),
}


class Noisy(torch.optim.Optimizer):
    """Moves every weight at every step, whatever its gradient is."""

    def __init__(self, params) -> None:
        super().__init__(params, {"lr": 0.1})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.add_(torch.randn_like(p), alpha=0.1)


def build() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Linear(20, 4))


def batches(n: int, size: int = 8) -> list[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(3)
    return [
        (torch.randn(size, 12, generator=g), torch.randint(0, 4, (size,), generator=g))
        for _ in range(n)
    ]


def loss(net: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(net(batch[0]), batch[1])


def train(net, optimizer, data) -> None:
    for batch in data:
        optimizer.zero_grad()
        loss(net, batch).backward()
        optimizer.step()


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(
        torch.equal(x, y)
        for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


def close(a: nn.Module, b: nn.Module) -> None:
    torch.testing.assert_close(a.state_dict(), b.state_dict(), rtol=1e-4, atol=1e-6)


def holds(net: nn.Module, masks: MaskSet) -> bool:
    return all(not bool(net.get_parameter(n)[~m].any()) for n, m in masks.items())


@pytest.mark.parametrize("name", [*OPTIMIZERS, "noisy", "muon"])
def test_masks_hold_with_every_optimizer(name: str) -> None:
    net = build()
    if name == "muon":  # an update of whole matrices, which moves what has no gradient
        net = nn.Sequential(nn.Linear(12, 20, bias=False), nn.ReLU(), nn.Linear(20, 4, bias=False))
        optimizer = torch.optim.Muon(net.parameters(), lr=0.05)
    else:
        optimizer = {**OPTIMIZERS, "noisy": Noisy}[name](net.parameters())
    handle = sec.attach(net, optimizer, ("gradual_magnitude", {"every": 2}), amount=0.8, steps=8)
    for batch in batches(8):
        before = copy.deepcopy(net)
        train(net, optimizer, [batch])
        assert holds(net, handle.masks)
        assert not same(net, before)
        for n, mask in handle.masks.items():
            p = net.get_parameter(n)
            for slot in optimizer.state.get(p, {}).values():
                if isinstance(slot, Tensor) and slot.shape == p.shape:
                    # Rprop's first step sizes are the learning rate, masked or not.
                    assert name == "rprop" or not bool(slot[~mask].any())
    assert handle.finish().masks.sparsity == pytest.approx(0.8, abs=0.01)


@pytest.mark.parametrize("name", ["sgd", "nesterov", "adamw", "rmsprop", "rprop"])
def test_fixed_masks_equal_a_loop_that_multiplies_by_hand(name: str) -> None:
    g = torch.Generator().manual_seed(1)
    net, other = build(), build()
    masks = {
        n: torch.rand(p.shape, generator=g) < 0.3 for n, p in net.named_parameters() if p.dim() > 1
    }
    optimizer = OPTIMIZERS[name](net.parameters())
    handle = sec.attach(net, optimizer, MaskSet(masks))
    train(net, optimizer, batches(6))
    by_hand = OPTIMIZERS[name](other.parameters())
    with torch.no_grad():
        for n, m in masks.items():
            other.get_parameter(n).mul_(m)
    for batch in batches(6):
        by_hand.zero_grad()
        loss(other, batch).backward()
        for n, m in masks.items():
            other.get_parameter(n).grad.mul_(m)
        by_hand.step()
        with torch.no_grad():
            for n, m in masks.items():
                other.get_parameter(n).mul_(m)
    assert same(net, other)
    assert handle.finish().masks == MaskSet(masks)


def test_accumulated_gradients_are_one_step() -> None:
    whole = batches(5, 16)
    net, other = (nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 4)) for _ in "ab")
    other.load_state_dict(net.state_dict())
    a, b = (torch.optim.SGD(n.parameters(), lr=0.1, momentum=0.9) for n in (net, other))
    ours, theirs = (
        sec.attach(n, o, ("rigl", {"every": 2}), amount=0.7, steps=5)
        for n, o in ((net, a), (other, b))
    )
    train(net, a, whole)
    for x, y in whole:
        b.zero_grad()
        for part in zip(x.chunk(4), y.chunk(4), strict=True):
            (loss(other, part) / 4).backward()
        b.step()
    assert theirs.steps == ours.steps == 5
    assert ours.masks == theirs.masks
    close(net, other)


def test_clipping_sees_the_gradient_of_the_loss() -> None:
    net = build()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    sec.attach(net, optimizer, ("l2", {"strength": 100.0}))
    plain = copy.deepcopy(net)
    (batch,) = batches(1)
    loss(net, batch).backward()
    loss(plain, batch).backward()
    norms = [nn.utils.clip_grad_norm_(n.parameters(), 0.5) for n in (net, plain)]
    assert torch.equal(*norms)


@pytest.mark.parametrize("method", [("l2", {"strength": 0.5}), ("rigl", {"every": 2})])
@pytest.mark.parametrize("fused", [False, True])
def test_a_scaler_changes_nothing_but_rounding(fused: bool, method) -> None:
    """Penalties and scores see the true gradients, however the scale reaches the optimizer."""
    results = []
    for scaled in (False, True):
        net = build()
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.01, fused=fused)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, enabled=scaled)
        handle = sec.attach(net, optimizer, method, amount=0.8, steps=6)
        for batch in batches(6):
            optimizer.zero_grad()
            scaler.scale(loss(net, batch)).backward()
            scaler.step(optimizer)
            scaler.update()
        results.append((net, handle.finish().masks))
    close(results[0][0], results[1][0])
    assert results[0][1] == results[1][1]


@pytest.mark.parametrize("name", ["gradual_magnitude", "movement"])
@pytest.mark.parametrize("fused", [False, True])
def test_an_overflow_under_a_scaler_is_no_step_and_no_warning(fused: bool, name: str) -> None:
    net = build()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**4)
    handle = sec.attach(net, optimizer, name, amount=0.8, steps=6, scaler=scaler)
    data = batches(6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for index, batch in enumerate([data[0], *data]):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                value = loss(net, batch)
            before = copy.deepcopy(net)
            # The first scale is too large for this loss.
            scaler.scale(value * (1e38 if index == 0 else 1.0)).backward()
            scaler.step(optimizer)
            scaler.update()
            if index == 0:
                assert all(map(torch.equal, before.parameters(), net.parameters()))
    assert handle.steps == 6
    masks = handle.finish().masks
    assert masks.sparsity == pytest.approx(0.8, abs=0.01) and holds(net, masks)
    assert all(bool(p.isfinite().all()) for p in net.parameters())


@pytest.mark.parametrize("fused", [False, True])
def test_two_optimizers_of_one_model_are_left_to_each_other(fused: bool) -> None:
    """Each has an attachment of its own, and none scales the gradients of the other's weights."""
    results = []
    for scaled in (False, True):
        net = build()
        halves = [list(net[:2].parameters()), list(net[3].parameters())]
        optimizers = [torch.optim.SGD(half, lr=0.05, fused=fused) for half in halves]
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, enabled=scaled)
        first = sec.attach(
            net, optimizers[0], "gradual_magnitude", amount=0.8, steps=6, ignore=["3"]
        )
        if not scaled:
            with pytest.raises(ConfigError, match=r"0.weight is masked.*ignore="):
                sec.attach(net, torch.optim.SGD(net.parameters(), lr=0.1), "random")
        second = sec.attach(
            net, optimizers[1], "rigl", amount=0.5, steps=6, every=2, ignore=["0"]
        ) if fused else None  # fmt: skip
        for batch in batches(6):
            for optimizer in optimizers:
                optimizer.zero_grad()
            scaler.scale(loss(net, batch)).backward()
            for optimizer in optimizers:
                scaler.step(optimizer)
            scaler.update()
        assert first.finish().masks.sparsity == pytest.approx(0.8, abs=0.01)
        if second is not None:
            assert second.finish().masks.sparsity == pytest.approx(0.5, abs=0.01)
        results.append(net)
    close(*results)


def test_a_model_that_was_stored_while_masked_can_be_masked_again() -> None:
    net = build()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    sec.attach(net, optimizer, "rigl", amount=0.5, steps=4, every=2)
    train(net, optimizer, batches(1))
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    for other in (again, copy.deepcopy(net)):
        handle = sec.attach(other, torch.optim.SGD(other.parameters(), lr=0.1), "random")
        assert handle.finish().masks.sparsity == pytest.approx(0.9, abs=0.01)


def test_an_average_of_weights_gets_the_same_masks() -> None:
    net = build()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    handle = sec.attach(net, optimizer, "gradual_magnitude", amount=0.8, steps=6)
    average = swa_utils.AveragedModel(net, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.9))
    expected = copy.deepcopy(net.state_dict())
    for batch in batches(6):
        train(net, optimizer, [batch])
        average.update_parameters(net)
    assert not holds(average.module, handle.masks)  # it remembers weights from before they went
    masks = handle.finish(averages=[average.module]).masks
    assert holds(average.module, masks) and holds(net, masks)
    assert list(average.module.state_dict()) == list(expected)


@pytest.mark.parametrize("name", ["edge_popup", "l0"])
def test_an_average_of_gated_weights_runs_with_its_own(name: str) -> None:
    net = build().eval()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    handle = sec.attach(net, optimizer, name, amount=0.5, steps=4)
    average = copy.deepcopy(net)
    x = batches(1)[0][0]
    assert torch.equal(average(x), net(x))
    with torch.no_grad():
        average[0].weight.mul_(2)
    assert not torch.equal(average(x), net(x))
    with torch.no_grad():
        average[0].weight.div_(2)
    handle.finish(averages=[average])
    assert torch.equal(average(x), net(x)) and same(average, net)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("name", ["rigl", "edge_popup"])
def test_a_compiled_model_trains_alike(name: str, backend: str) -> None:
    results = []
    for compiled in (False, True):
        torch._dynamo.reset()
        net = build()
        model = torch.compile(net, backend=backend) if compiled else net
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        options = {"every": 2} if name == "rigl" else {}
        handle = sec.attach(model, optimizer, name, amount=0.6, steps=5, **options)
        train(model, optimizer, batches(5))
        results.append((net, handle.finish().masks))
    assert results[0][1] == results[1][1]
    close(results[0][0], results[1][0])


@pytest.mark.parametrize("kind", ["one-cycle", "cosine", "plateau"])
def test_schedulers_of_the_learning_rate_stay_as_they_are(kind: str) -> None:
    net = build()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    plain = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9)
    make = {
        "one-cycle": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.3, 6),
        "cosine": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 6),
        "plateau": lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o, patience=1),
    }[kind]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        handle = sec.attach(net, optimizer, "gradual_magnitude", amount=0.8, steps=6)
        ours, theirs = make(optimizer), make(plain)
        for batch in batches(6):
            train(net, optimizer, [batch])
            plain.step()
            for scheduler in (ours, theirs):
                scheduler.step(*([1.0] if kind == "plateau" else []))
            assert optimizer.param_groups[0]["lr"] == plain.param_groups[0]["lr"]
    assert handle.finish().masks.sparsity == pytest.approx(0.8, abs=0.01)


def backward(net, optimizer, batch) -> Tensor:
    optimizer.zero_grad()
    value = loss(net, batch)
    value.backward()
    return value.detach()


@pytest.mark.parametrize("name", ["rigl", "l2", "edge_popup"])
def test_a_step_with_a_closure_is_the_same_step(name: str) -> None:
    results = []
    for closed in (False, True):
        net = build()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        options = {"every": 2} if name == "rigl" else {}
        handle = sec.attach(net, optimizer, name, amount=0.6, steps=6, **options)
        for batch in batches(6):
            closure = partial(backward, net, optimizer, batch)
            if closed:
                assert optimizer.step(closure).item() > 0
            else:
                closure()
                optimizer.step()
        results.append((net, handle.finish().masks))
    assert same(results[0][0], results[1][0]) and results[0][1] == results[1][1]


class Derived(torch.optim.SGD):
    def step(self, closure=None):
        return super().step(closure)


class Evaluating(torch.optim.SGD):
    """Runs the closure by itself, and may run out of memory."""

    fails = False

    @torch.no_grad()
    def step(self, closure=None):
        with torch.enable_grad():
            value = None if closure is None else closure()
        super().step()
        if self.fails:
            raise torch.OutOfMemoryError
        return value


@pytest.mark.parametrize("name", ["gradual_magnitude", "l1", "movement"])
@pytest.mark.parametrize("kind", [Derived, Evaluating])
@pytest.mark.parametrize("closed", [False, True])
def test_a_step_that_calls_that_of_its_base_is_one_step(name: str, kind, closed: bool) -> None:
    results = []
    for cls in (torch.optim.SGD, kind):
        net = build()
        optimizer = cls(net.parameters(), lr=0.1, momentum=0.9)
        options = {} if name == "l1" else {"amount": 0.6, "steps": 6}
        handle = sec.attach(net, optimizer, name, **options)
        for batch in batches(6):
            closure = partial(backward, net, optimizer, batch)
            if closed:
                assert optimizer.step(closure).item() > 0
            else:
                closure()
                optimizer.step()
        assert handle.steps == 6
        results.append((net, handle.finish().masks))
    assert same(results[0][0], results[1][0]) and results[0][1] == results[1][1]


def test_an_attachment_acts_on_after_a_step_that_failed() -> None:
    net = build()
    optimizer = Evaluating(net.parameters(), lr=0.1)
    handle = sec.attach(net, optimizer, "gradual_magnitude", amount=0.6, steps=6)
    optimizer.fails = True
    with pytest.raises(torch.OutOfMemoryError):
        train(net, optimizer, batches(1))
    optimizer.fails = False
    train(net, optimizer, batches(3))
    assert handle.steps == 3


def test_an_optimizer_of_many_evaluations_is_refused() -> None:
    net = build()
    with pytest.raises(ConfigError, match="LBFGS evaluates the loss several times"):
        sec.attach(net, torch.optim.LBFGS(net.parameters()), "random")
    with pytest.raises(ConfigError, match=r"optimizer= is a list"):
        sec.attach(net, list(net.parameters()), "random")


def test_a_step_that_is_skipped_leaves_no_trace_in_norms() -> None:
    net = build()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    handle = sec.attach(net, optimizer, "gradual_magnitude", amount=0.8, steps=6)
    train(net, optimizer, batches(3))
    before = copy.deepcopy(net)
    with pytest.warns(UserWarning, match="skipped"):
        train(net, optimizer, [(torch.full((8, 12), float("nan")), batches(1)[0][1])])
    assert same(net, before) and handle.skipped == 1
    train(net, optimizer, batches(3))
    assert bool(net[1].running_mean.isfinite().all())


def test_gradients_whose_squares_overflow_are_finite() -> None:
    net = build()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    handle = sec.attach(net, optimizer, "random", amount=0.5)
    for p in net.parameters():
        p.grad = torch.full_like(p, 1e30)
    optimizer.step()
    assert handle.steps == 1 and handle.skipped == 0
