"""Every method that acts on training, on two tiny networks: the promises that all of them make."""

import copy
import gc
import inspect
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur as sec
from secateur.methods import registry

NAMES = [*registry.names("before"), *registry.names("during")]
STEPS = 10
# What these mask trains on, or counts for less and less, until the masks are final.
SOFT = {
    "asymptotic_soft_filter", "continuous_sparsification", "dmcp", "dsa", "early_bert",
    "factorized_filters", "fpgm", "l0", "pdp", "sheared_llama", "soft_filter", "upop",
    "wdpruning",
}  # fmt: skip


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(12 * 4, 5),
    )


def dense() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(81, 20), nn.ReLU(), nn.Linear(20, 5))


def batches(n: int, dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(5)
    return [
        (
            torch.randn(8, 1, 9, 9, generator=generator).to(dtype),
            torch.randint(0, 5, (8,), generator=generator),
        )
        for _ in range(n)
    ]


def start(build: Any, name: str, dtype: torch.dtype = torch.float32, steps: int = STEPS) -> Any:
    torch.manual_seed(0)
    net = build().to(dtype)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    found = registry.entry(name)
    options: dict[str, Any] = {"every": 2} if "every" in found.options() else {}
    if "amount" in inspect.signature(found.function).parameters:
        options["amount"] = 0.8
    more = {}
    gate = registry.find(name, **options).gate
    aux = gate.auxiliaries("w", torch.ones(2, 2), torch.Generator()) if gate is not None else {}
    if any(t.is_floating_point() for t in aux.values()):  # these are trained
        more["validation"] = batches(2, dtype)
    handle = sec.attach(
        net,
        optimizer,
        name,
        steps=steps,
        data=batches(2, dtype),
        example_inputs=batches(1, dtype)[0][0],
        **more,
        **options,
    )
    return net, optimizer, handle


def train(net: nn.Module, optimizer: torch.optim.Optimizer, data: Any) -> None:
    for x, y in data:
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x).float(), y).backward()
        optimizer.step()


def suits(build: Any, name: str) -> bool:
    """Methods on the scales of batch norms need some."""
    return not (build is dense and "bn" in name) and not (build is dense and name in NORMS)


NORMS = {"network_slimming", "slimming", "early_bird"}


@pytest.mark.parametrize(
    ("build", "name"), [(b, n) for b in (convolutional, dense) for n in NAMES if suits(b, n)]
)
def test_exact_sparsity_resume_and_plain_names(name: str, build: Any) -> None:
    data = batches(STEPS, torch.float32)
    net, optimizer, handle = start(build, name)
    names = list(net.state_dict())
    for batch in data:
        train(net, optimizer, [batch])
        assert name in SOFT or not leaking(handle)
    first, a, b = start(build, name)
    train(first, a, data[:5])
    saved = copy.deepcopy((first.state_dict(), a.state_dict(), b.state_dict()))
    again, c, d = start(build, name)
    again.load_state_dict(saved[0])
    c.load_state_dict(saved[1])
    d.load_state_dict(saved[2])
    train(again, c, data[5:])
    assert d.masks == handle.masks
    for key, value in net.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key
    amount = handle.method.amount
    result = handle.finish()
    assert list(net.state_dict()) == names
    assert not any("weight" in m.__dict__ for m in net.modules())
    for n, mask in result.masks.items():
        assert not bool(net.get_parameter(n)[~mask].any()), n
        assert bool(net.get_parameter(n).isfinite().all()), n
    if amount is not None and not isinstance(handle.method.granularity, tuple):
        if handle.method.granularity == "element":
            left = round((1 - amount) * result.masks.total)
            assert abs(result.masks.kept - left) <= len(result.masks)
        else:  # whole units: as many as fit
            assert result.masks.sparsity > 0.5 * amount


def leaking(handle: Any) -> list[str]:
    """Parameters of which the forward sees something that is masked."""
    seen = handle.moment.parameters
    if handle.gated is not None:
        seen = {**seen, **handle.gated.effective(handle.gated.gated())}
    return [n for n, mask in handle.masks.items() if bool(seen[n].detach()[~mask].any())]


@pytest.mark.parametrize(
    ("build", "name"), [(b, n) for b in (convolutional, dense) for n in NAMES if suits(b, n)]
)
def test_nothing_piles_up_over_steps(name: str, build: Any) -> None:
    net, optimizer, handle = start(build, name, steps=200)
    data = batches(1, torch.float32) * 8

    def taken() -> int:
        optimizer.zero_grad()
        gc.collect()
        # Of other tests there may be tensors without memory, which are of types of their own.
        found = (t for t in gc.get_objects() if type(t) in (Tensor, nn.Parameter))
        storages = (t.untyped_storage() for t in found if t.device.type == "cpu")
        return sum({s.data_ptr(): s.nbytes() for s in storages}.values())

    train(net, optimizer, data * 3)  # HESSO chooses at a tenth of the run
    before = taken()
    train(net, optimizer, data)
    assert taken() <= before
    handle.detach()


@pytest.mark.parametrize(
    ("build", "name"), [(b, n) for b in (convolutional, dense) for n in NAMES if suits(b, n)]
)
def test_bfloat16_runs(name: str, build: Any) -> None:
    net, optimizer, handle = start(build, name, torch.bfloat16)
    train(net, optimizer, batches(STEPS, torch.bfloat16))
    for n, mask in handle.finish().masks.items():
        assert not bool(net.get_parameter(n)[~mask].any()), n
    assert all(bool(p.isfinite().all()) for p in net.parameters())
    assert all(p.dtype == torch.bfloat16 for p in net.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_no_option_of_a_method_is_hidden_by_an_argument_of_attach(name) -> None:
    own = set(inspect.signature(sec.attach).parameters) - {"amount"}
    assert not own & set(registry.entry(name).options())
