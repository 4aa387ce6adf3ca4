"""``sec.gate``: what is left out while a model runs, against what the papers write out."""

import copy
import math
from typing import Any

import pytest
import torch
from tiny import batches, llama, logits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

import secateur as sec
from secateur.errors import ConfigError, DataError, PlanError
from secateur.methods.runtime.dynatran import curve
from secateur.methods.runtime.evit import attentive
from secateur.methods.runtime.tome import merge


def vit() -> nn.Module:
    torch.manual_seed(0)
    return sec.zoo.build("vit").eval()


def images(count: int = 3) -> Tensor:
    return torch.randn(count, 1, 28, 28, generator=torch.Generator().manual_seed(1))


def run(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x)


def merged_by_hand(x: Tensor, size: Tensor, keys: Tensor, r: int, first: int) -> Tensor:
    """One sample, pair by pair: what each token at an even place offers, the best r taken."""
    tokens = [(x[i] * size[i], float(size[i])) for i in range(len(x))]
    even, odd = list(range(first, len(x), 2)), list(range(first + 1, len(x), 2))
    offers = []
    for a in even:
        likeness = [float(F.cosine_similarity(keys[a], keys[b], dim=0)) for b in odd]
        best = max(range(len(odd)), key=lambda k: likeness[k])
        offers.append((likeness[best], a, odd[best]))
    offers.sort(key=lambda offer: -offer[0])
    for _, a, b in offers[:r]:
        tokens[b] = (tokens[b][0] + tokens[a][0], tokens[b][1] + tokens[a][1])
    gone = {a for _, a, _ in offers[:r]}
    order = [*range(first), *(a for a in even if a not in gone), *odd]
    return torch.stack([torch.cat([tokens[i][0] / tokens[i][1], torch.tensor([tokens[i][1]])])
                        for i in order])  # fmt: skip


@pytest.mark.parametrize(("r", "first"), [(1, 0), (3, 1), (99, 1)])
def test_merging_equals_merging_pair_by_pair(r: int, first: int) -> None:
    torch.manual_seed(0)
    x, keys, size = torch.randn(2, 11, 4), torch.randn(2, 11, 3), torch.rand(2, 11) + 0.5
    fewer, sizes = merge(x, size, keys, r, first)
    for k in range(2):
        expected = merged_by_hand(x[k], size[k], keys[k], min(r, (11 - first) // 2), first)
        assert_close(torch.cat([fewer[k], sizes[k][:, None]], 1), expected, rtol=1e-4, atol=1e-5)


def test_merging_loses_no_patch_and_leaves_the_class_token() -> None:
    torch.manual_seed(0)
    x, size = torch.randn(3, 14, 4), torch.ones(3, 14)
    total = (x * size[..., None]).sum(1)
    cls = x[:, 0]
    for _ in range(3):
        x, size = merge(x, size, x, 2, 1)
        assert_close(size.sum(1), torch.full((3,), 14.0))
        assert_close((x * size[..., None]).sum(1), total, rtol=1e-4, atol=1e-5)
        assert torch.equal(x[:, 0], cls)
    order = torch.tensor([2, 0, 1])
    assert_close(merge(x[order], size[order], x[order], 2, 1)[0], merge(x, size, x, 2, 1)[0][order])


class Same(nn.Module):
    """Two transformer blocks without positions, on tokens that are given."""

    def __init__(self) -> None:
        super().__init__()
        from secateur.zoo.networks.vit import Block

        self.blocks = nn.ModuleList(Block(16, 2, 24) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x[:, 0]


def test_twins_merge_without_loss_when_tokens_count_by_their_size() -> None:
    torch.manual_seed(0)
    net = Same().eval()
    half = torch.randn(2, 5, 16)
    x = torch.cat([torch.randn(2, 1, 16), half.repeat_interleave(2, dim=1)], 1)  # pairs of twins
    gated = sec.gate(net, "tome", data=[x], merged=5)
    assert_close(run(gated.model, x), run(net, x), rtol=1e-4, atol=1e-5)
    assert gated.counted() == {"tokens": [6, 4]}  # the second block merges after the last look
    once = sec.gate(net, "tome", data=[x], merged=5, proportional=False)
    assert (run(once.model, x) - run(net, x)).abs().max() > 1e-3


def test_evit_keeps_what_the_class_token_attends_to() -> None:
    torch.manual_seed(0)
    x, size = torch.randn(2, 9, 4), torch.ones(2, 9)
    attention = torch.rand(2, 8)
    fewer, sizes = attentive(x, size, attention, 0.55)
    assert fewer.shape == (2, 1 + math.ceil(0.55 * 8) + 1, 4) and (sizes.sum(1) == 9).all()
    for k in range(2):
        ranked = sorted(range(8), key=lambda i: -float(attention[k, i]))
        stay, gone = sorted(ranked[:5]), ranked[5:]
        fused = sum(float(attention[k, i]) * x[k, 1 + i] for i in gone)
        expected = torch.stack([x[k, 0], *(x[k, 1 + i] for i in stay), fused])
        assert_close(fewer[k], expected, rtol=1e-4, atol=1e-6)


def test_evit_reads_the_attention_of_the_block() -> None:
    """The whole network, with the block that reduces written out by hand."""
    net, x = vit(), images(2)
    gated = sec.gate(net, "evit", data=[(x,)], keep=0.5, blocks=[1])
    with torch.no_grad():
        t = net.patch_embed(x).flatten(2).transpose(1, 2)
        t = torch.cat([net.cls_token.expand(2, -1, -1), t], 1) + net.pos_embed
        for k, block in enumerate(net.blocks):
            b, n, c = t.shape
            qkv = block.attn.qkv(block.norm1(t)).view(b, n, 3, 4, c // 4).permute(2, 0, 3, 1, 4)
            weights = (qkv[0] @ qkv[1].transpose(-1, -2) / (c // 4) ** 0.5).softmax(-1)
            t = t + block.attn.proj((weights @ qkv[2]).transpose(1, 2).reshape(b, n, c))
            if k == 1:
                t, _ = attentive(t, torch.ones(b, n), weights[:, :, 0, 1:].mean(1), 0.5)
            t = t + block.mlp(block.norm2(t))
        expected = net.head(net.norm(t)[:, 0])
    assert_close(run(gated.model, x), expected, rtol=1e-4, atol=1e-5)
    assert gated.counted() == {"tokens": [50, 27, 27, 27]}


@pytest.mark.parametrize(
    ("method", "options"), [("tome", {"merged": 0}), ("evit", {"keep": 1.0}),
                            ("dynatran", {"threshold": 0.0})]
)  # fmt: skip
def test_gates_that_leave_nothing_out_change_nothing(method: str, options: Any) -> None:
    net, x = vit(), images()
    gated = sec.gate(net, method, data=[(x,)], **options)
    assert_close(run(gated.model, x), run(net, x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("tome", {"merged": 6}),
        ("evit", {"keep": 0.5, "blocks": [1]}),
        ("dynatran", {"sparsity": 0.5}),
    ],
)
def test_gates_go_in_and_out_and_are_copied_whole(method: str, options: Any) -> None:
    net, x = vit(), images()
    dense = run(net, x)
    gated = sec.gate(net, method, data=[(x,)], **options)
    assert torch.equal(run(net, x), dense)  # the user's own model
    assert (run(gated.model, x) - dense).abs().max() > 1e-4
    assert gated.model.state_dict().keys() == net.state_dict().keys()
    copied = copy.deepcopy(gated.model)
    with torch.no_grad():
        copied.head.bias += 1
        copied.blocks[0].mlp[2].bias.zero_()
        net.blocks[0].mlp[2].bias.zero_()
    again = sec.gate(net, method, data=[(x,)], **options) if method != "dynatran" else None
    if again is not None:
        assert_close(run(copied, x) - 1, run(again.model, x), rtol=1e-4, atol=1e-5)
    assert torch.equal(run(gated.remove(), x), dense)
    assert all("forward" not in vars(m) for m in gated.model.modules())
    training = sec.gate(vit(), method, data=[(x,)], inplace=True, **options).model
    training(x).sum().backward()
    assert training.patch_embed.weight.grad.abs().sum() > 0


def test_dynatran_reaches_the_sparsity_that_was_asked_for_on_other_data() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(20, 30), nn.GELU(), nn.Linear(30, 5)).eval()
    given, fresh = torch.randn(400, 20), torch.randn(400, 20)
    found = [sec.gate(net, "dynatran", data=[given], sparsity=s) for s in (0.2, 0.5, 0.7)]
    thresholds = [g.counted()["threshold"] for g in found]
    assert thresholds == sorted(thresholds)
    for gated, wanted in zip(found, (0.2, 0.5, 0.7), strict=True):
        y = run(gated.model, fresh)
        assert gated.counted()["zeros"] == pytest.approx(wanted, abs=0.05)
        tau = gated.counted()["threshold"]
        by_hand = fresh.masked_fill(fresh.abs() < tau, 0)
        by_hand = F.gelu(net[0](by_hand))
        by_hand = net[2](by_hand.masked_fill(by_hand.abs() < tau, 0))
        assert_close(y, by_hand, rtol=1e-4, atol=1e-5)


def test_dynatran_reads_its_curve_off_more_values_than_float32_can_count() -> None:
    layer = nn.Linear(1 << 12, 1)
    thresholds, _ = curve(layer, [layer], [torch.arange(2.0).repeat(1 << 13, 1 << 11)])
    assert float(thresholds[-1]) == 1.0


def test_dynatran_counts_and_skips_what_is_zero_already() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.ReLU(), nn.Linear(8, 4))
    x = torch.randn(100, 8)
    x[:50] = -1
    gated = sec.gate(net, "dynatran", threshold=0.0)
    assert_close(run(gated.model, x), run(net, x))
    zeros = float((x.relu() == 0).float().mean())
    assert gated.counted()["zeros"] == pytest.approx(zeros)
    assert gated.counted()["skipped"] >= 0.5
    few = sec.gate(net, "dynatran", data=[x], sparsity=0.3).counted()
    assert few["threshold"] == 0.0  # that many are zero as it is
    fractions = curve(net, [net[1]], [x])[1]
    assert float(fractions[0]) == pytest.approx(zeros, abs=0.01)


def test_rows_of_nothing_are_skipped_and_give_the_bias() -> None:
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Linear(6, 4))
    x = torch.randn(3, 5, 6)
    x[:, 1::2] *= 1e-3
    gated = sec.gate(layer, "dynatran", threshold=0.05)
    y = run(gated.model, x)
    assert gated.counted()["skipped"] == pytest.approx(6 / 15)
    assert_close(y[:, 1], layer[0].bias.expand(3, 4))
    assert_close(y[:, 0], layer(x.masked_fill(x.abs() < 0.05, 0))[:, 0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("method", "options", "error", "words"),
    [
        ("flap", {}, ConfigError, "does not act at run time: it is for sec.prune"),
        ("tome", {"merged": -1}, ConfigError, "0 or more"),
        ("evit", {"keep": 0.0}, ConfigError, "in \\(0, 1\\]"),
        ("dynatran", {}, ConfigError, "either sparsity"),
        (
            "dynatran",
            {"sparsity": 0.5, "data": None},
            DataError,
            "needs data.*give data=.*inputs\\.$",
        ),
        ("tome", {"data": None}, DataError, "Leaving out tokens .*give data=.*inputs\\.$"),
    ],
)
def test_what_cannot_be_is_one_clear_error(
    method: str, options: dict[str, Any], error: type[Exception], words: str
) -> None:
    net = vit()
    with pytest.raises(error, match=words):
        sec.gate(net, method, **{"data": [(images(),)], **options}, inplace=True)
    assert all("forward" not in vars(m) for m in net.modules())


def test_attention_that_cannot_be_read_is_told_and_nothing_stays_behind() -> None:
    model = llama(2, attn_implementation="eager")
    with pytest.raises((PlanError, DataError), match="scaled_dot_product_attention"):
        sec.gate(model, "tome", data=batches(1), inplace=True)
    assert all("forward" not in vars(m) for m in model.modules())
    assert logits(model).isfinite().all()
