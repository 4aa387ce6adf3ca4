"""What a comparison cannot show it must not call proven."""

import pytest
import torch
from torch import nn

import secateur as sec
from secateur.errors import DataError, TraceError
from secateur.plan.verify import distance


def plan_of(net):
    graph = sec.trace(net, torch.randn(3, 6))
    return sec.plan(graph, amount=0.5, criterion="random", seed=1)


class Choice(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5))

    def forward(self, x):
        return self.net(x).argmax(1)


def test_integers_alone_prove_nothing():
    net = Choice()
    proof = plan_of(net).verify(net)
    assert not proof.proven and not proof.ok and "floating" in proof.note


def test_an_effect_below_the_tolerance_is_noted():
    net = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 5))
    with torch.no_grad():
        net[1].weight.mul_(1e-7)
    proof = plan_of(net).verify(net)
    assert 0 < proof.change < proof.tolerance and "shows little" in proof.note


def test_imaginary_parts_count():
    a = torch.tensor([1 + 0j, 1 + 0j])
    assert distance([a], [a + 1j]) > 0.5


def test_one_tensor_given_as_three_inputs_stays_one() -> None:
    """An attention whose query is its key and value takes a path of its own, with other classes."""
    torch.manual_seed(0)
    attention, x = nn.MultiheadAttention(32, 4, batch_first=True), torch.randn(2, 5, 32)
    result = sec.prune(attention, (x, x, x), amount=0.5, measure=False, progress=False)
    assert result.verification.proven and result.verification.ok


def test_an_empty_batch_is_refused():
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5))
    with pytest.raises(TraceError, match=r"shape \(0, 6\) hold no example"):
        sec.prune(net, torch.randn(0, 6), amount=0.5, measure=False, progress=False)


class Empty(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5))

    def forward(self, x):
        return self.net(x)[:0]


def test_an_empty_output_proves_nothing():
    net = Empty()
    proof = plan_of(net).verify(net)
    assert not proof.proven and "empty" in proof.note


class Overflowing(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5))

    def forward(self, x):
        return self.net(x) * float("inf")


def test_nothing_finite_proves_nothing():
    net = Overflowing()
    plan = plan_of(net)
    wrong = plan.apply(net)
    with torch.no_grad():
        wrong.net[0].bias.add_(100.0)
        for p in wrong.net[2].parameters():
            p.abs_()
    proof = plan.verify(net, wrong)
    assert not proof.proven and "finite" in proof.note


def test_buffers_that_are_not_numbers_are_refused():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))
    net[1].running_var[2] = float("nan")
    with pytest.raises(DataError, match=r"1\.running_var holds NaN"):
        sec.prune(net, torch.randn(2, 3, 8, 8), amount=0.5, measure=False, progress=False)


class Beside(nn.Module):
    """A branch whose whole effect is small beside what passes it by."""

    def __init__(self, scale: float):
        super().__init__()
        self.a, self.b, self.scale = nn.Linear(6, 16), nn.Linear(16, 6), scale

    def forward(self, x):
        return x + self.scale * self.b(self.a(x).relu())


@pytest.mark.parametrize(
    ("dtype", "scale"), [(torch.float32, 3e-4), (torch.bfloat16, 0.05), (torch.float16, 0.03)]
)
def test_a_wrong_unit_is_seen_though_its_effect_is_below_the_tolerance(dtype, scale):
    torch.manual_seed(0)
    net = Beside(scale).to(dtype).eval()
    plan = sec.plan(sec.trace(net, torch.randn(3, 6, dtype=dtype)), amount=0.5, criterion="l2")
    right, wrong = plan.apply(net), plan.apply(net)
    assert plan.verify(net, right).ok
    with torch.no_grad():
        wrong.b.weight[:, :4] *= -1
    proof = plan.verify(net, wrong)
    assert proof.error < proof.tolerance  # by the size of the output alone it would have passed
    assert proof.proven and not proof.ok and "NOT EQUAL" in str(proof)


class Fixed(Beside):
    """Computes in float32, whatever it is given."""

    def forward(self, x):
        return x.float() + self.scale * torch.nn.functional.linear(
            self.a(x).relu().float(), self.b.weight.float()
        )


def test_where_rounding_hides_the_effect_nothing_is_proven():
    torch.manual_seed(0)
    net = Fixed(1e-9).eval()
    plan = sec.plan(sec.trace(net, torch.randn(3, 6)), amount=0.5, criterion="l2")
    wrong = plan.apply(net)
    with torch.no_grad():
        wrong.b.weight.mul_(50)
    proof = plan.verify(net, wrong)
    assert not proof.ok and not proof.proven and "too little to tell" in proof.note


@pytest.mark.parametrize("kind", ["dropout", "noise", "bernoulli", "rand_like"])
def test_a_model_that_draws_is_compared_with_its_means(kind):
    class Drawing(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 12), nn.Linear(12, 3)

        def forward(self, x):
            y = self.a(x)
            if kind == "dropout":
                y = nn.functional.dropout(y, 0.5, True)
            elif kind == "noise":
                y = y * torch.empty_like(y).normal_(1.0, 0.1)
            elif kind == "bernoulli":
                y = y * torch.bernoulli(y.sigmoid())
            else:
                y = y * torch.rand_like(y)
            return self.b(y)

    torch.manual_seed(0)
    net = Drawing().eval()
    result = sec.prune(net, torch.randn(3, 6), amount=0.5, measure=False, progress=False)
    proof = result.verification
    assert proof.ok and proof.proven and "random numbers" in proof.note
    wrong = result.plan.apply(net)
    with torch.no_grad():
        wrong.a.weight[0] *= -1
    assert not result.plan.verify(net, wrong).ok
