"""How an amount is divided among layers, against the same things written out."""

from typing import Any

import pytest
import torch
from torch import nn

import secateur as sec
from secateur.engine.dense import dense_energies
from secateur.errors import ConfigError, DataError
from secateur.scope import amounts
from secateur.scope.alpha_pruning import tail_exponent
from secateur.scope.amounts import Weighed
from secateur.scope.fisher import fisher


def chain(blocks: int = 3) -> nn.Sequential:
    """Blocks of two layers, each with larger weights than the one before, one with outliers."""
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8)) for _ in range(blocks))
    )
    with torch.no_grad():
        for i, block in enumerate(net):
            for p in block.parameters():
                p.mul_(1 + i)
        net[1][0].weight[::5, ::3] *= 20
    return net


def data() -> list[torch.Tensor]:
    return [torch.randn(16, 8, generator=torch.Generator().manual_seed(k)) for k in range(3)]


def layers(net: nn.Sequential) -> list[Weighed]:
    """With norms of inputs that are seen by hooks on each layer."""
    squares: dict[str, torch.Tensor] = {}

    def hook(name: str) -> Any:
        def seen(_: nn.Module, x: Any, __: Any) -> None:
            squares[name] = squares.get(name, 0) + x[0].square().sum(0)

        return seen

    named = {n: m for n, m in net.named_modules() if isinstance(m, nn.Linear)}
    handles = [m.register_forward_hook(hook(n)) for n, m in named.items()]
    with torch.no_grad():
        for x in data():
            net(x)
    for handle in handles:
        handle.remove()
    return [
        Weighed(f"{n}.weight", n.split(".")[0], m.weight, (squares[n] / 48).sqrt())
        for n, m in named.items()
    ]


def removed(result: sec.Sparsified) -> dict[str, float]:
    return {row.layer: row.removed / row.total for row in result.report.rows}


def test_global_magnitude_removes_the_smallest_weights_of_the_model() -> None:
    net = chain()
    weights = {n: p for n, p in net.named_parameters() if p.dim() == 2}
    together = torch.cat([p.detach().abs().flatten() for p in weights.values()])
    result = sec.sparsify(net, "magnitude", amount=0.6, scope="global", progress=False)
    last = together.sort().values[round(0.6 * len(together)) - 1]
    for name, p in weights.items():
        assert torch.equal(result.masks[name], p.abs() > last)
    assert result.report.removed == round(0.6 * len(together))
    # Twice as large weights in one layer are other weights that go: not so layer by layer.
    assert len({round(v, 3) for v in removed(result).values()}) > 1


def test_equal_weights_of_all_layers_are_counted_and_not_compared() -> None:
    same = [Weighed(n, n, torch.ones(2, 5)) for n in "abc"]
    found = amounts.divide("global", same, 0.5, {})
    assert sum(round(v * 10) for v in found.values()) == 15


@pytest.mark.parametrize("spread", [0.02, 0.08])
def test_owl_follows_the_share_of_outliers(spread: float) -> None:
    net = chain()
    given = layers(net)
    share = {}
    for block in "012":
        scores = [
            abs(w) * norm
            for layer in given
            if layer.block == block
            for row in layer.weight.tolist()
            for w, norm in zip(row, layer.input_norm.tolist(), strict=True)
        ]
        mean = sum(scores) / len(scores)
        share[block] = sum(s > 5 * mean for s in scores) / len(scores)
    low, high = min(share.values()), max(share.values())
    assert high > low
    dense = {b: 2 * spread * (v - low) / (high - low) for b, v in share.items()}
    mean = sum(dense.values()) / 3  # blocks of the same size
    result = sec.sparsify(
        net, "wanda", amount=0.5, scope=("owl", {"spread": spread}), data=data(), progress=False
    )
    for name, part in amounts.divide("owl", given, 0.5, {"spread": spread}).items():
        assert part == pytest.approx(0.5 + mean - dense[name.split(".")[0]])
        # Wanda removes whole weights of each row.
        width = net.get_parameter(name).shape[1]
        assert removed(result)[name] == round(part * width) / width


def test_alpha_pruning_is_hills_estimate_and_meets_the_amount() -> None:
    torch.manual_seed(0)
    weight = torch.randn(12, 8)
    values = torch.linalg.eigvalsh((weight.T @ weight).double()).flip(0)
    expected = 1 + 4 / sum(float((v / values[4]).log()) for v in values[:4])
    assert tail_exponent(weight) == pytest.approx(expected, rel=1e-4)
    net = chain()
    found = amounts.divide("alpha-pruning", layers(net), 0.6, {})
    sizes = {n: p.numel() for n, p in net.named_parameters()}
    total = sum(found[n] * sizes[n] for n in found) / sum(sizes[n] for n in found)
    assert total == pytest.approx(0.6)
    assert max(found.values()) / min(found.values()) == pytest.approx(1.3 / 0.7)


def test_fisher_is_the_global_order_of_inputs_times_gradients() -> None:
    net = chain()
    batches = [(x, torch.randn(16, 8, generator=torch.Generator().manual_seed(9))) for x in data()]
    inputs, gradients = {}, {}  # by autograd on each layer's output, one batch at a time
    named = {n: m for n, m in net.named_modules() if isinstance(m, nn.Linear)}
    for x, y in batches:
        outputs = {}
        for name, module in net.named_modules():
            if isinstance(module, nn.Linear | nn.ReLU):
                if name in named:
                    inputs[name] = inputs.get(name, 0) + x.detach().square().sum(0)
                x = module(x)
                outputs[name] = x
        loss = nn.functional.mse_loss(x, y)
        found = torch.autograd.grad(loss, [outputs[n] for n in named])
        for name, g in zip(named, found, strict=True):
            gradients[name] = gradients.get(name, 0) + g.square().sum(0)
    scores = {
        f"{n}.weight": m.weight.square() * inputs[n] * gradients[n][:, None]
        for n, m in named.items()
    }
    together = torch.cat([s.flatten() for s in scores.values()])
    last = together.sort().values[len(together) // 2 - 1]
    before = [p.clone() for p in net.parameters()]
    # With Wanda's score per row the amounts alone can be seen, with magnitude's the rows too.
    result = sec.sparsify(
        net, "wanda", amount=0.5, scope=("fisher", {"spread": 1}), data=batches, progress=False
    )
    for name, part in removed(result).items():
        width = scores[name].shape[1]
        share = float((scores[name] <= last).double().mean())
        assert part == pytest.approx(round(share * width) / width)
    by_rows = sec.sparsify(
        net, "magnitude", amount=0.5, scope=("fisher", {"spread": 1}), data=batches, progress=False
    )
    for name, module in named.items():
        rows = module.weight.abs() * gradients[name].sqrt()[:, None]
        count = int((~by_rows.masks[f"{name}.weight"]).sum())
        assert count == int((scores[f"{name}.weight"] <= last).sum())
        if count:
            gone = rows.flatten().argsort()[:count]
            assert not bool(by_rows.masks[f"{name}.weight"].flatten()[gone].any())
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), before, strict=True))
    assert all(p.requires_grad and p.grad is None for p in net.parameters())
    with pytest.raises(DataError, match="no loss"):
        sec.sparsify(net, "wanda", amount=0.5, scope="fisher", data=data(), progress=False)


@pytest.mark.parametrize("amount", [0.05, 0.5, 0.95])
@pytest.mark.parametrize("spread", [0.0, 0.1, 0.3, 1.0])
def test_fisher_stays_within_its_spread_and_takes_the_lowest_there(
    amount: float, spread: float
) -> None:
    torch.manual_seed(0)
    n = 600
    layers = [
        Weighed(str(k), "", torch.randn(20, 30) * 4.0**k, torch.ones(30), torch.ones(20))
        for k in range(4)
    ]
    found = fisher(layers, amount, spread=spread)
    # One weight after another, the lowest of those whose layer may still lose one.
    least, most = (
        round(max(amount - spread, 0) * n),
        round(min(amount + spread, 1) * n),
    )
    waiting = [sorted(layer.weight.abs().flatten().tolist()) for layer in layers]
    gone = [least] * 4
    while sum(gone) < round(amount * 4 * n):
        open_ = [(waiting[k][g], k) for k, g in enumerate(gone) if g < most]
        gone[min(open_)[1]] += 1
    assert [found[str(k)] for k in range(4)] == [g / n for g in gone]


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(ConfigError, match="spread must be 0 or more"):
        sec.sparsify(
            chain(), "magnitude", amount=0.5, scope=("fisher", {"spread": -1}),
            data=[(x, x) for x in data()], progress=False,
        )  # fmt: skip
    with pytest.raises(ConfigError, match="owl"):
        sec.sparsify(chain(), "wanda", amount=0.5, scope="owls", data=data(), progress=False)
    with pytest.raises(ConfigError, match="leave one out"):
        sec.sparsify(chain(), "magnitude", pattern="2:4", scope="global", progress=False)
    with pytest.raises(DataError, match="data="):
        sec.sparsify(chain(), "magnitude", amount=0.5, scope="owl", progress=False)
    with pytest.raises(ConfigError, match="spread="):
        sec.sparsify(chain(), "magnitude", amount=0.9, scope="alpha-pruning", progress=False)
    with pytest.raises(ConfigError, match="loud"):
        sec.sparsify(
            chain(), "magnitude", amount=0.5, scope=("global", {"loud": 1}), progress=False
        )


@pytest.mark.parametrize("amount", [0.0, 0.1, 0.37, 0.9, 0.999])
def test_shares_are_those_of_sorting_all_scores(amount: float) -> None:
    torch.manual_seed(0)
    parts = [torch.rand(50, 37) * 10.0**k for k in (-3, 0, 2)]
    parts += [torch.randint(0, 5, (40, 20)).float(), torch.zeros(6, 7)]  # many that are equal
    one_by_one = [Weighed(str(k), "", part) for k, part in enumerate(parts)]
    together = torch.cat([part.flatten() for part in parts])
    gone = torch.zeros(len(together))
    gone[together.sort(stable=True).indices[: round(amount * len(together))]] = 1
    wanted = [float(part.mean()) for part in gone.split([part.numel() for part in parts])]
    found = amounts.shares_of_lowest(one_by_one, lambda layer: layer.weight, amount)
    assert list(found.values()) == pytest.approx(wanted, abs=1e-6)


class Adds(nn.Module):
    """A block that writes what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x += nn.functional.silu(self.inner(x), inplace=True)
        return x


def test_blocks_that_write_their_inputs_are_weighed_as_those_that_do_not() -> None:
    class Copies(Adds):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + nn.functional.silu(self.inner(x))

    found = []
    for block in (Adds, Copies):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(8, 8), *(block() for _ in range(3)), nn.Linear(8, 2))
        pairs = [(x, torch.zeros(16, 2)) for x in data()]
        found.append([e.gradients for e in dense_energies(net, pairs)])
    assert found[0]
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
