"""``attach``: exact counts, effective masks, resuming, and mistakes."""

import copy
import warnings

import pytest
import torch
from torch import Tensor, nn

import secateur as sec
from secateur.criteria.registry import Criterion
from secateur.engine.statistics import collect
from secateur.errors import ConfigError, DataError, StoreError
from secateur.methods import registry

EVERY = {"rigl": {"every": 2}}
Y = torch.arange(8) % 5


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(12 * 4, 5),
    )


def dense() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(81, 20), nn.ReLU(), nn.Linear(20, 5))


def batches(n: int = 10, dtype: torch.dtype = torch.float32) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(5)
    return [
        (
            torch.randn(8, 1, 9, 9, generator=generator).to(dtype),
            torch.randint(0, 5, (8,), generator=generator),
        )
        for _ in range(n)
    ]


def start(build, name: str, dtype=torch.float32, kind: str = "adam", **more):
    torch.manual_seed(0)
    net = build().to(dtype)
    if kind == "adam":
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.01, weight_decay=0.1)
    else:
        optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    arguments = {"amount": 0.8, "steps": 10, **EVERY.get(name, {}), **more}
    handle = sec.attach(
        net,
        optimizer,
        name,
        data=batches(2, dtype),
        example_inputs=batches(1, dtype)[0][0],
        **arguments,
    )
    return net, optimizer, handle


def train(net, optimizer, data) -> None:
    for x, y in data:
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x).float(), y).backward()
        optimizer.step()


@pytest.mark.parametrize("kind", ["adam", "sgd"])
@pytest.mark.parametrize("build", [convolutional, dense])
@pytest.mark.parametrize("name", ["random", "snip", "gradual_magnitude", "rigl", "edge_popup"])
def test_ten_steps_end_with_exactly_the_sparsity_asked(name, build, kind) -> None:
    net, optimizer, handle = start(build, name, kind=kind)
    names = list(net.state_dict())
    train(net, optimizer, batches())
    result = handle.finish()
    total = result.masks.total
    assert abs(result.masks.kept - round(0.2 * total)) <= len(result.masks)
    for n, mask in result.masks.items():
        assert not bool(net.get_parameter(n)[~mask].any())
    assert list(net.state_dict()) == names
    assert not any("weight" in m.__dict__ for m in net.modules())
    copy.deepcopy(net)


@pytest.mark.parametrize("name", ["random", "snip", "gradual_magnitude", "rigl"])
def test_masks_hold_in_weights_and_slots_at_every_step(name) -> None:
    net, optimizer, handle = start(convolutional, name)
    for batch in batches():
        train(net, optimizer, [batch])
        for n, mask in handle.masks.items():
            p = net.get_parameter(n)
            assert not bool(p[~mask].any())
            for slot in optimizer.state.get(p, {}).values():
                if slot.shape == p.shape:
                    assert not bool(slot[~mask].any())


@pytest.mark.parametrize("name", ["random", "snip", "gradual_magnitude", "rigl", "edge_popup"])
def test_a_resumed_run_equals_an_uninterrupted_one(name) -> None:
    data = batches()
    net, optimizer, handle = start(convolutional, name)
    train(net, optimizer, data)
    first, a, b = start(convolutional, name)
    train(first, a, data[:5])
    saved = copy.deepcopy((first.state_dict(), a.state_dict(), b.state_dict()))
    again, c, d = start(convolutional, name)
    again.load_state_dict(saved[0])
    c.load_state_dict(saved[1])
    d.load_state_dict(saved[2])
    train(again, c, data[5:])
    assert d.masks == handle.masks
    for key, value in net.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key


def test_rigl_keeps_the_number_of_weights_and_moves_them() -> None:
    net, optimizer, handle = start(dense, "rigl", every=1)
    first = handle.masks
    counts = {n: int(m.sum()) for n, m in first.items()}
    for batch in batches():
        before, old = {n: p.detach().clone() for n, p in net.named_parameters()}, handle.masks
        train(net, optimizer, [batch])
        new = handle.masks
        assert {n: int(m.sum()) for n, m in new.items()} == counts
        for n in new:
            grown = new[n] & ~old[n]
            assert not bool(net.get_parameter(n)[grown].any())
            if bool(grown.any()):  # the step that exchanges updates no weight
                stay = new[n] & old[n]
                assert torch.equal(net.get_parameter(n)[stay], before[n][stay])
    assert handle.masks != first


def test_snip_keeps_the_largest_products_of_gradient_and_weight() -> None:
    torch.manual_seed(0)
    net = dense()
    x, y = batches(1)[0]
    nn.functional.cross_entropy(net(x), y).backward()
    products = {n: (p.grad * p).abs() for n, p in net.named_parameters() if p.dim() > 1}
    best = torch.cat([s.flatten() for s in products.values()]).sort(descending=True).values
    threshold = best[round(0.2 * len(best)) - 1]
    torch.manual_seed(0)
    other = dense()
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    handle = sec.attach(other, optimizer, "snip", amount=0.8, data=[(x, y)])
    for n, mask in handle.masks.items():
        assert torch.equal(mask, products[n] >= threshold)


def test_edge_popup_trains_scores_and_never_a_weight() -> None:
    net, optimizer, handle = start(dense, "edge_popup", kind="sgd")
    weights = {n: p.detach().clone() for n, p in net.named_parameters() if p.dim() > 1}
    aux = {n: of["score"].detach().clone() for n, of in handle.gated.aux.items()}
    x, y = batches(1)[0]
    effective = handle.gated.effective(list(weights))
    fake = {n: w.detach().clone().requires_grad_() for n, w in effective.items()}
    hidden = (x.flatten(1) @ fake["1.weight"].T + net[1].bias).relu()
    out = hidden @ fake["3.weight"].T + net[3].bias
    nn.functional.cross_entropy(out, y).backward()
    train(net, optimizer, [(x, y)])
    for n, old in weights.items():
        assert torch.equal(net.get_parameter(n), old)
        moved = aux[n] - 0.1 * fake[n].grad * old * aux[n].sign()
        torch.testing.assert_close(handle.gated.aux[n]["score"].detach(), moved)


def test_a_step_with_a_gradient_that_is_not_finite_is_skipped() -> None:
    net, optimizer, handle = start(dense, "gradual_magnitude")
    train(net, optimizer, batches(3))
    before = copy.deepcopy(net.state_dict())
    slots = copy.deepcopy(optimizer.state_dict()["state"])
    with pytest.warns(UserWarning, match="skipped"):
        train(net, optimizer, [(torch.full((8, 1, 9, 9), float("nan")), batches(1)[0][1])])
    assert handle.skipped == 1 and handle.steps == 3
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert str(optimizer.state_dict()["state"]) == str(slots)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(net, optimizer, batches(7))
    assert handle.finish().masks.sparsity == pytest.approx(0.8, abs=0.01)


def test_a_layer_is_never_emptied_unless_asked() -> None:
    for allow, least in ((False, 1), (True, 0)):
        torch.manual_seed(0)
        net = dense()
        with torch.no_grad():
            net[3].weight.mul_(1e-6)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        method = registry.Method(0.99, scope="global", name="magnitude")
        handle = sec.attach(net, optimizer, method, allow_empty=allow)
        assert int(handle.masks["3.weight"].sum()) == least
        said = ["nothing is left of 3.weight"]
        if not allow:
            said = ["3.weight would have lost all its weights: its best unit stays"]
        assert handle.notes == said
        assert handle.masks.kept == round(handle.masks.total * 0.01)


def test_mistakes_are_named_and_nothing_is_changed() -> None:
    net = dense()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    before = copy.deepcopy(net.state_dict())
    for error, match, call in [
        (ConfigError, "did you mean 'rigl'", lambda: sec.attach(net, optimizer, "rigel")),
        (ConfigError, r"\[0, 1\)", lambda: sec.attach(net, optimizer, "snip", amount=1.0)),
        (ConfigError, "steps=", lambda: sec.attach(net, optimizer, "gradual_magnitude")),
        (ConfigError, "never act", lambda: sec.attach(net, optimizer, "rigl", steps=50)),
        (ConfigError, "option", lambda: sec.attach(net, optimizer, "rigl", steps=200, evry=1)),
        (DataError, "data", lambda: sec.attach(net, optimizer, "snip")),
        (
            ConfigError,
            "does not hold",
            lambda: sec.attach(net, torch.optim.SGD(net[3].parameters(), lr=1.0), "random"),
        ),
    ]:
        with pytest.raises(error, match=match):
            call()
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    handle = sec.attach(net, optimizer, "random")
    with pytest.raises(ConfigError, match="attachment already"):
        sec.attach(net, optimizer, "random")
    with pytest.raises(ConfigError, match="another attachment"):
        sec.attach(net, torch.optim.SGD(net.parameters(), lr=0.1), "random")
    state = handle.state_dict()
    handle.finish()
    other = nn.Sequential(nn.Linear(3, 2))
    theirs = sec.attach(other, torch.optim.SGD(other.parameters(), lr=0.1), "random")
    with pytest.raises(StoreError, match="another model"):
        theirs.load_state_dict(state)
    sec.attach(net, optimizer, "random").finish()


NAN = float("nan")


@pytest.mark.parametrize(
    ("words", "method", "given"),
    [
        (r"amount=nan: .*\[0, 1\)", "random", {"amount": NAN}),
        (r"amount='half'", "random", {"amount": "half"}),
        ("must satisfy .* 0 <= start < end", "gradual_magnitude", {"start": 0.9, "end": 0.5}),
        ("steps is 2.5: give a whole number of at least 1", "gradual_magnitude", {"steps": 2.5}),
        ("steps is '9'", "gradual_magnitude", {"steps": "9"}),
        ("steps is -1", "random", {"steps": -1}),
        ("seed is 'a'", "random", {"seed": "a"}),
        ("every of method 'rigl' is 0: give a whole number", "rigl", {"every": 0}),
        ("'rigl' would exchange 2 of the weights", "rigl", {"every": 2, "share": 2.0}),
        ("validation= needs data, got int", "autoprune", {"validation": 5}),
        ("the loss is nan on batch 0", "snip", {"data": [(torch.full((8, 81), NAN), Y)]}),
        ("could not be run on the batch", "iterative_snip", {"data": [(torch.ones(8, 80), Y)]}),
        ("yielded no batch", "snip", {"data": []}),
        ("model= is a list", "random", {"model": [1, 2]}),
        ("scaler= is a int: give the loop's GradScaler", "l0", {"scaler": 5}),
    ],
)
def test_what_cannot_be_meant_is_one_error_and_changes_nothing(words, method, given) -> None:
    net = dense()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    before = copy.deepcopy(net.state_dict())
    model, more = given.get("model", net), {k: v for k, v in given.items() if k != "model"}
    with pytest.raises((ConfigError, DataError), match=words):
        sec.attach(model, optimizer, method, **{"steps": 10, **more})
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert not any(m._forward_pre_hooks for m in net.modules())
    sec.attach(net, optimizer, "random").detach()


def test_channels_that_are_zero_can_be_removed_and_that_is_proven() -> None:
    torch.manual_seed(0)
    net = convolutional()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    x = batches(1)[0][0]
    handle = sec.attach(
        net,
        optimizer,
        ("gradual_magnitude", {"granularity": "channel"}),
        amount=0.5,
        steps=10,
        example_inputs=x,
    )
    train(net, optimizer, batches())
    net.eval()
    result = handle.finish(remove=True, example_inputs=x)
    assert result.verification.ok
    assert result.model[0].out_channels == 4 and result.model[3].out_channels == 6
    torch.testing.assert_close(result.model.eval()(x), net(x), atol=1e-5, rtol=1e-4)


class Sum(nn.Module):
    """Two layers that make the same units together."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 8, 3), nn.Conv2d(1, 8, 3)
        self.last = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last((self.first(x) + self.second(x)).relu().mean((2, 3)))


def test_a_unit_has_one_draw_a_forward_in_all_its_tensors() -> None:
    torch.manual_seed(0)
    net = Sum()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    handle = sec.attach(
        net, optimizer, ("l0", {"granularity": "channel"}), example_inputs=batches(1)[0][0]
    )
    seen: dict[str, Tensor] = {}
    for key, layer in (("first", net.first), ("second", net.second)):
        layer.register_forward_hook(lambda m, *_, k=key: seen.update({k: m.__dict__["weight"]}))
        hooks = layer._forward_hooks  # after the gate's own hook it is gone
        hooks.move_to_end(next(reversed(hooks)), last=False)
    assert not seen
    net(batches(1)[0][0])
    first = (seen["first"] / net.first.weight)[:, 0, 0, 0].detach()
    second = (seen["second"] / net.second.weight)[:, 0, 0, 0].detach()
    torch.testing.assert_close(first, second)
    assert len(first.unique()) > 2
    handle.detach()


def test_a_criterion_may_compare_with_the_weights_before_training() -> None:
    """Magnitude increase of arXiv:1905.01067: what has grown most since the start stays."""

    def increase(weight: Tensor, stats) -> Tensor:
        return weight.abs() - stats.initial.abs()

    criterion = Criterion("increase", increase, needs=frozenset({"initial"}))
    method = registry.Method(0.8, criterion=criterion, schedule="linear", every=10)
    torch.manual_seed(0)
    net = dense()
    first = {n: p.detach().clone() for n, p in net.named_parameters() if p.dim() > 1}
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    handle = sec.attach(net, optimizer, method, steps=10)
    train(net, optimizer, batches()[:9])
    saved = copy.deepcopy(handle.state_dict())
    grown = {n: net.get_parameter(n).detach().abs() - w.abs() for n, w in first.items()}
    train(net, optimizer, batches()[9:])
    for n, mask in handle.masks.items():
        keep = round(0.2 * mask.numel())
        best = grown[n].flatten().topk(keep).indices.sort().values
        assert torch.equal(mask.flatten().nonzero().flatten(), best)
    handle.detach()
    again = sec.attach(net, optimizer, method, steps=10, state=saved)
    assert all(torch.equal(t, first[n]) for n, t in again.moment.part("initial").items())
    with pytest.raises(ConfigError, match=r"known to sec\.attach only"):
        collect(net, {"initial"}, batches(1))


@pytest.mark.parametrize(
    ("method", "call"),
    [("flap", "sec.prune"), ("shortgpt", "sec.prune"), ("wanda", "sec.sparsify"),
     ("tome", "sec.gate")],
)  # fmt: skip
def test_a_method_of_another_stage_says_which_call_it_is_for(method: str, call: str) -> None:
    net = dense()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with pytest.raises(ConfigError, match=f"method '{method}' .* it is for {call}"):
        sec.attach(net, optimizer, method, steps=10, data=batches(1))


@pytest.mark.parametrize("name", ["hesso", "gradual_magnitude", "rigl"])
def test_a_run_that_ends_early_says_what_it_has_not_reached(name: str) -> None:
    net, optimizer, handle = start(dense, name)
    train(net, optimizer, batches(4))
    assert repr(handle) == f"Handle({name}, step 4 of 10, {handle.sparsity:.2%} masked)"
    notes = handle.finish().notes
    if name == "rigl":  # its amount is there from the start
        assert notes == []
    else:
        assert len(notes) == 1 and notes[0].startswith("finished after 4 of 10 steps")
