"""Gates stand wherever a weight is read, and their auxiliaries see what the loop's weights see."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import secateur as sec
from secateur.errors import ConfigError

Y = torch.tensor([0, 1, 2, 0])


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))


class Past(nn.Module):
    """Reads the weight of a layer that it never calls."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.spare = nn.Linear(8, 8), nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.a(x).relu(), self.b.weight)


def tied() -> nn.Module:
    a, b = nn.Linear(8, 8), nn.Linear(8, 8)
    b.weight = a.weight
    return nn.Sequential(a, nn.ReLU(), b, nn.Linear(8, 3))


def attached(net: nn.Module, method, lr: float = 0.1, **options):
    optimizer = torch.optim.SGD(net.parameters(), lr=lr)
    return optimizer, sec.attach(net, optimizer, method, steps=20, **options)


def train(net: nn.Module, optimizer, x: Tensor, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(net(x), Y).backward()
        optimizer.step()


def test_the_output_projection_of_attention_is_gated() -> None:
    torch.manual_seed(0)
    net, x = Attending(), torch.randn(4, 5, 8)
    optimizer, handle = attached(net, "movement", amount=0.5)
    train(net, optimizer, x, 20)
    assert bool(handle.gated.aux["attention.out_proj.weight"]["score"].any())
    net.eval()
    seen = net(x)
    handle.finish()
    torch.testing.assert_close(net(x), seen)
    assert "weight" not in vars(net.attention.out_proj)


def test_a_tied_weight_is_gated_wherever_it_is_read() -> None:
    torch.manual_seed(0)
    net, x = tied(), torch.randn(4, 8)
    optimizer, handle = attached(net, "movement", amount=0.8)
    train(net, optimizer, x, 20)
    net.eval()
    seen = net(x)
    handle.finish()
    torch.testing.assert_close(net(x), seen)


@pytest.mark.parametrize("name", ["movement", "edge_popup", "str", "l0", "loraprune"])
def test_a_weight_that_is_read_past_its_gate_is_named(name: str) -> None:
    torch.manual_seed(0)
    net, x = Past(), torch.randn(4, 8)
    options = {"ignore": ["spare"], "example_inputs": x}
    optimizer, _ = attached(net, name, **options)
    with pytest.raises(ConfigError, match=r"^b\.weight got a gradient past its gate.*ignore="):
        train(net, optimizer, x, 1)
    net = Past()
    options["ignore"] = ["b", "spare"]
    optimizer, _ = attached(net, name, **options)
    train(net, optimizer, x, 3)


@pytest.mark.parametrize("name", ["movement", "top_kast", "str"])
def test_what_a_forward_does_not_use_is_no_mistake(name: str) -> None:
    torch.manual_seed(0)
    net, x = Past(), torch.randn(4, 8)
    optimizer, handle = attached(net, name, ignore=["b"])
    optimizer.zero_grad(set_to_none=False)
    net.spare.weight.grad = torch.zeros_like(net.spare.weight)
    for _ in range(3):
        F.cross_entropy(net(x), Y).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
    assert handle.steps == 3


def test_gradients_from_before_attaching_are_no_mistake() -> None:
    net = nn.Sequential(nn.Linear(8, 3))
    F.cross_entropy(net(torch.randn(4, 8)), Y).backward()
    optimizer, handle = attached(net, "movement")
    optimizer.step()
    assert handle.steps == 1
