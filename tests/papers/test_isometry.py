"""Orthogonal layers keep lengths, masking breaks it, the repair mends it; isometric SNIP."""

import pytest
import torch
from during_runs import dense, vectors
from torch import nn

import secateur as sec
from secateur.engine.isometry import departure, orthogonal, repair
from secateur.errors import DataError


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (8, 3, 3, 3), (3, 8, 5)])
def test_the_smaller_product_is_the_identity(shape) -> None:
    w = orthogonal(torch.empty(shape), torch.Generator().manual_seed(1))
    m = w.flatten(2).sum(2) if w.dim() > 2 else w
    gram = m @ m.T if shape[0] < shape[1] else m.T @ m
    torch.testing.assert_close(gram, torch.eye(min(shape[:2])), atol=1e-5, rtol=0)
    assert int(w.count_nonzero()) == shape[0] * shape[1]


def test_a_delta_orthogonal_convolution_keeps_every_length() -> None:
    conv = nn.Conv2d(4, 8, 3, padding=1, bias=False)
    with torch.no_grad():
        conv.weight.copy_(orthogonal(conv.weight))
    x = torch.randn(3, 4, 7, 7)
    torch.testing.assert_close(conv(x).flatten(1).norm(dim=1), x.flatten(1).norm(dim=1))


def singular(weights) -> torch.Tensor:
    product = torch.eye(16)
    for w in weights:
        product = w @ product
    return torch.linalg.svdvals(product)


def test_masking_spreads_the_jacobians_singular_values_and_the_repair_gathers_them() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = {str(i): orthogonal(torch.empty(16, 16), generator) for i in range(5)}
    torch.testing.assert_close(singular(weights.values()), torch.ones(16))
    masks = {n: torch.rand(16, 16, generator=generator) < 0.5 for n in weights}
    masked = {n: w * masks[n] for n, w in weights.items()}
    mended = repair(weights, masks)
    for n in weights:
        assert float(departure(mended[n])) < 0.2 * float(departure(masked[n]))
        assert not bool(mended[n][~masks[n]].any())
        naive = sum(
            (float(mended[n][:, i] @ mended[n][:, j]) - (i == j)) ** 2
            for i in range(16)
            for j in range(16)
        )
        assert float(departure(mended[n])) == pytest.approx(naive, rel=1e-3, abs=1e-5)
    before, after = singular(masked.values()), singular(mended.values())
    assert float(before.mean()) < 0.3 < 0.7 < float(after.mean()) < 1.1


def test_isometric_snip_scores_orthogonal_layers_and_trains_mended_ones() -> None:
    net = dense()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    handle = sec.attach(net, optimizer, "isometric_snip", amount=0.6, data=vectors(1))
    generator = torch.Generator().manual_seed(0x5ECA7E)
    other = dense()
    with torch.no_grad():
        for layer in (0, 2):
            other[layer].weight.copy_(orthogonal(other[layer].weight, generator))
    x, y = vectors(1)[0]
    nn.functional.cross_entropy(other(x), y).backward()
    scores = torch.cat([(other[n].weight * other[n].weight.grad).abs().flatten() for n in (0, 2)])
    lowest = scores.sort(descending=True).values[300 - 1]
    for layer in (0, 2):
        w = other[layer].weight
        mask = (w * w.grad).abs() >= lowest
        assert torch.equal(handle.masks[f"{layer}.weight"], mask)
        assert float(departure(net[layer].weight.detach())) < float(departure((w * mask).detach()))
    assert handle.finish().masks.kept == 300


def test_a_model_that_cannot_be_scored_is_as_it_was() -> None:
    net = dense()
    before = {n: t.clone() for n, t in net.state_dict().items()}
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with pytest.raises(DataError):
        sec.attach(net, optimizer, "isometric_snip")
    for n, t in net.state_dict().items():
        assert torch.equal(t, before[n])
    sec.attach(net, optimizer, "random")
