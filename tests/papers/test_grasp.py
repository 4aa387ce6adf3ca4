"""GraSP: Hessian times gradient against closed forms, the whole Hessian, and differences."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import secateur as sec
from secateur.criteria.grasp import grasp
from secateur.errors import DataError


class Quadratic(nn.Module):
    """Half of t' A t."""

    def __init__(self, a: Tensor) -> None:
        super().__init__()
        self.a, self.t = a, nn.Parameter(torch.randn(1, len(a)))

    def forward(self, x: Tensor) -> Tensor:
        return (self.t @ self.a @ self.t.T).sum() / 2 * x.mean()


def itself(output: Tensor, target: object) -> Tensor:
    return output


def small() -> tuple[nn.Module, list]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    data = [(torch.randn(8, 4).double(), torch.randint(0, 3, (8,))) for _ in range(3)]
    return net, data


def test_a_quadratic_gives_the_square_of_its_matrix() -> None:
    torch.manual_seed(0)
    a = torch.randn(5, 5)
    a = a @ a.T
    net = Quadratic(a)
    data = [(torch.ones(2), None)]
    found = grasp(net, {"t": net.t}, data=data, loss=itself, temperature=1.0)["t"]
    t = net.t.detach()
    assert_close(found, t * (a @ a @ t.T).T)


def test_the_score_is_weight_times_the_whole_hessian_times_the_gradient() -> None:
    net, data = small()
    named = dict(net.named_parameters())
    flat = torch.cat([p.detach().flatten() for p in named.values()])

    def loss_of(vector: Tensor) -> Tensor:
        parts = vector.split([p.numel() for p in named.values()])
        tensors = {n: v.view_as(p) for v, (n, p) in zip(parts, named.items(), strict=True)}
        losses = [
            nn.functional.cross_entropy(torch.func.functional_call(net, tensors, (x,)) / 200, y)
            for x, y in data
        ]
        return torch.stack(losses).mean()

    gradient = torch.func.grad(loss_of)(flat)
    hessian = torch.func.hessian(loss_of)(flat)
    naive = flat * (hessian @ gradient)
    found = grasp(net, named, data=data)
    assert_close(torch.cat([s.flatten() for s in found.values()]), naive.float())

    # -2 times its sum over removed weights is what their removal does to the squared gradient.
    delta = torch.zeros_like(flat)
    delta[::3] = -flat[::3]
    eps = 1e-4
    ends = [torch.func.grad(loss_of)(flat + s * eps * delta).square().sum() for s in (1, -1)]
    assert_close((ends[0] - ends[1]) / (2 * eps), -2 * naive[::3].sum(), rtol=1e-5, atol=1e-12)
    assert bool((naive < 0).any()) and bool((naive > 0).any())  # it is signed


def masks(scale: float, **more) -> tuple[sec.MaskSet, nn.Module]:
    net, data = small()
    before = copy.deepcopy(net.state_dict())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return scale * nn.functional.cross_entropy(output, target)

    handle = sec.attach(net, optimizer, "grasp", data=data, loss=loss, **more)
    for n, mask in handle.masks.items():
        assert torch.equal(net.get_parameter(n).detach(), before[n] * mask)
    return handle.masks, net


def test_the_lowest_scores_go_and_the_scale_of_the_loss_changes_nothing() -> None:
    found, net = masks(1.0, amount=0.6)
    assert found == masks(1e3, amount=0.6)[0] and found.kept == round(0.4 * 35)
    net, data = small()
    weights = {n: p for n, p in net.named_parameters() if p.dim() > 1}
    scores = grasp(net, weights, data=data)
    lowest = torch.cat([s.flatten() for s in scores.values()]).sort(descending=True).values[13]
    for n, mask in found.items():
        assert torch.equal(mask, scores[n] >= lowest)
    assert all(p.grad is None for p in net.parameters())


def test_data_must_be_there_and_readable_twice() -> None:
    net, data = small()
    for given in (None, iter(data)):
        with pytest.raises(DataError):
            grasp(net, dict(net.named_parameters()), data=given)
