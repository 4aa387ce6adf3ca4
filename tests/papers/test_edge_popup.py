"""Edge-popup: the initial weights of its paper, and that they are never trained."""

import torch
from during_runs import dense, train, vectors

import secateur as sec


def test_weights_are_signed_constants_and_never_change() -> None:
    net = dense()
    signs = {n: net[n].weight.detach().sign() for n in (0, 2)}
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-2)
    handle = sec.attach(net, optimizer, "edge_popup", amount=0.75)
    train(net, optimizer, vectors(5))
    for n, inputs in ((0, 20), (2, 30)):
        size = (2 / (0.25 * inputs)) ** 0.5
        torch.testing.assert_close(net[n].weight.detach(), signs[n] * size)
    handle.finish()
    assert sum(int((net[n].weight != 0).sum()) for n in (0, 2)) == 188


def test_what_passes_a_layer_keeps_its_variance() -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(*[
        m for _ in range(4) for m in (torch.nn.Linear(400, 400, bias=False), torch.nn.ReLU())
    ])  # fmt: skip
    plain = [m.weight.detach().clone() for m in net if isinstance(m, torch.nn.Linear)]
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    handle = sec.attach(net, optimizer, "edge_popup", amount=0.9)
    x = torch.randn(200, 400)
    out = net(x).detach()
    assert 0.5 < float(out.square().mean() / x.square().mean()) < 2
    masked = x
    for w, mask in zip(plain, handle.masks.values(), strict=True):
        masked = (masked @ (w * mask).T).relu()
    assert float(masked.square().mean() / x.square().mean()) < 1e-5  # as torch starts them


def test_weights_may_stay_as_they_came() -> None:
    net = dense()
    before = net[0].weight.detach().clone()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    sec.attach(net, optimizer, ("edge_popup", {"constant": False}), amount=0.5)
    assert torch.equal(net[0].weight, before)


def test_the_inputs_of_a_transposed_convolution_are_along_its_first_axis() -> None:
    net = torch.nn.ConvTranspose2d(8, 6, 3, groups=2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    sec.attach(net, optimizer, "edge_popup", amount=0.75)
    size = (2 / (0.25 * 4 * 9)) ** 0.5
    torch.testing.assert_close(net.weight.detach().abs(), torch.full((8, 3, 3, 3), size))
