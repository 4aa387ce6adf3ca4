"""What modules and Python do around the operators: ties, buffers, wrappers, arguments, outputs."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from tests.rules.op_net import Net, case, conv, images, pooled, tokens, words
from torch import Tensor, nn
from torch.nn.utils import parametrizations


@case(words())
def tied_embedding():
    """One matrix reads tokens and scores them: sliced once, still one tensor afterwards."""
    net = Net(
        lambda net, x: net.out(net.mix(net.embed(x)).relu()),
        embed=nn.Embedding(50, 24),
        mix=nn.Linear(24, 24),
        out=nn.Linear(24, 50, bias=False),
    )
    net.out.weight = net.embed.weight
    return net


@case(tokens())
def tied_layers():
    """Two layers with the same weights and biases of their own."""
    net = Net(
        lambda net, x: net.head(net.b(net.a(net.embed(x)).relu()).relu().mean(1)),
        embed=nn.Linear(14, 24),
        a=nn.Linear(24, 24),
        b=nn.Linear(24, 24),
        head=nn.Linear(24, 5),
    )
    net.b.weight = net.a.weight
    return net


@case(images())
def module_called_twice():
    """The same convolution after itself: what it makes is what it takes."""
    return Net(
        lambda net, x: net.head(pooled(net.again(net.again(net.stem(x).relu()).relu()))),
        stem=conv(3, 16),
        again=conv(16, 16),
        head=nn.Linear(16, 5),
    )


@case(images())
def module_under_two_names():
    """Registered twice: one set of units."""
    shared = conv(16, 16)
    return Net(
        lambda net, x: net.head(pooled(net.b(net.a(net.stem(x).relu()).relu()))),
        stem=conv(3, 16),
        a=shared,
        b=shared,
        head=nn.Linear(16, 5),
    )


@case(images())
def one_head_for_two_branches():
    """A shared head couples the branches it reads (detectors)."""
    return Net(
        lambda net, x: (net.head(net.a(x).relu()), net.head(net.b(x).relu())),
        a=conv(3, 16),
        b=conv(3, 16, stride=2),
        head=nn.Sequential(conv(16, 12), nn.ReLU(), conv(12, 4)),
    )


@case(images())
def batch_norm_in_train_mode():
    """A model in train mode is traced and pruned in train mode."""
    net = Net(
        lambda net, x: net.head(pooled(net.after(net.norm(net.stem(x)).relu()))),
        stem=conv(3, 16),
        norm=nn.BatchNorm2d(16, momentum=0.0),
        after=conv(16, 10, 1),
        head=nn.Linear(10, 5),
    )
    return net.train()


@case(images())
def some_modules_in_train_mode():
    """Modes may differ from module to module; each keeps its own."""
    net = residual_in_eval()
    net.norm.train()
    return net


def residual_in_eval():
    return Net(
        lambda net, x: net.head(pooled(net.after(net.norm(net.stem(x)).relu()))),
        stem=conv(3, 16),
        norm=nn.BatchNorm2d(16, momentum=0.0),
        after=conv(16, 10, 1),
        head=nn.Linear(10, 5),
    ).eval()


@case(images())
def batch_norm_without_statistics():
    """No running buffers, no weight: nothing of it is sliced, its channel count still follows."""
    return Net(
        lambda net, x: net.head(pooled(net.after(net.norm(net.stem(x)).relu()))),
        stem=conv(3, 16),
        norm=nn.BatchNorm2d(16, affine=False, track_running_stats=False),
        after=conv(16, 10, 1),
        head=nn.Linear(10, 5),
    )


@case(images())
def frozen_batch_norm():
    """Four buffers in place of parameters (detection backbones)."""
    from torchvision.ops import FrozenBatchNorm2d

    return Net(
        lambda net, x: net.head(pooled(net.after(net.norm(net.stem(x)).relu()))),
        stem=conv(3, 16),
        norm=FrozenBatchNorm2d(16),
        after=conv(16, 10, 1),
        head=nn.Linear(10, 5),
    )


@case(images())
def frozen_parameters():
    """requires_grad is False and stays so."""
    net = residual_in_eval()
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    return net


@case(images())
def detached_and_without_grad():
    """Gradients cut in two ways; the graph is not read off autograd."""

    def forward(net, x):
        with torch.no_grad():
            x = net.stem(x).relu()
        return net.head(pooled(net.after(x.detach()).relu()))

    return Net(forward, stem=conv(3, 16), after=conv(16, 10, 1), head=nn.Linear(10, 5))


@case(images())
def weight_norm():
    """Magnitude and direction are sliced, the parametrization stays registered."""
    return Net(
        lambda net, x: net.head(pooled(net.after(net.stem(x).relu()).relu())),
        stem=parametrizations.weight_norm(conv(3, 16)),
        after=conv(16, 10, 1),
        head=nn.Linear(10, 5),
    )


@case(images())
def old_weight_norm():
    """The hook of older torch: weight_g and weight_v are parameters, weight a plain attribute."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stem = nn.utils.weight_norm(conv(3, 16))
    return Net(
        lambda net, x: net.head(pooled(net.after(net.stem(x).relu()).relu())),
        stem=stem,
        after=conv(16, 10, 1),
        head=nn.Linear(10, 5),
    )


@case(tokens())
def spectral_norm():
    """The weight is divided by its largest singular value; its singular vectors are buffers."""
    return Net(
        lambda net, x: net.head(net.b(net.a(x).relu()).relu().mean(1)),
        a=parametrizations.spectral_norm(nn.Linear(14, 24)),
        b=nn.Linear(24, 16),
        head=nn.Linear(16, 5),
    )


class Doubled(nn.Module):
    """A parametrization of the user's own."""

    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


@case(tokens())
def own_parametrization():
    """Any registered parametrization: the original is sliced."""
    net = Net(
        lambda net, x: net.head(net.b(net.a(x).relu()).relu().mean(1)),
        a=nn.Linear(14, 24),
        b=nn.Linear(24, 16),
        head=nn.Linear(16, 5),
    )
    nn.utils.parametrize.register_parametrization(net.a, "weight", Doubled())
    return net


@case(images())
def standardised_weights():
    """The weight is normalised over its inputs: removing inputs changes the statistics."""

    class Standardised(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            w = self.weight
            w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 1e-5)
            return F.conv2d(x, w, self.bias, padding=1)

    return Net(
        lambda net, x: net.head(pooled(net.after(net.stem(x).relu()).relu())),
        stem=conv(3, 16),
        after=Standardised(16, 12, 3),
        head=nn.Linear(12, 5),
    )


@case(tokens())
def bare_parameters():
    """Weights that no layer holds: by einsum, F.linear, @ and broadcasting."""

    def forward(net, x):
        x = torch.einsum("bnc,cd->bnd", net.embed(x).relu(), net.w1).relu()
        x = (F.linear(x, net.w2) @ net.w3).relu()
        return net.head(x.mean(1))

    return Net(
        forward,
        embed=nn.Linear(14, 24),
        w1=nn.Parameter(torch.randn(24, 20) * 0.2),
        w2=nn.Parameter(torch.randn(28, 20) * 0.2),
        w3=nn.Parameter(torch.randn(28, 16) * 0.2),
        head=nn.Linear(16, 5),
    )


@case(images())
def bare_convolution():
    """F.conv2d on a parameter."""
    return Net(
        lambda net, x: net.head(pooled(F.conv2d(net.stem(x).relu(), net.w, net.b).relu())),
        stem=conv(3, 16),
        w=nn.Parameter(torch.randn(12, 16, 3, 3) * 0.2),
        b=nn.Parameter(torch.randn(12)),
        head=nn.Linear(12, 5),
    )


@case(images())
def buffers():
    """A persistent and a non-persistent buffer along channels are sliced like weights."""

    def forward(net, x):
        x = (net.stem(x) - net.shift) * net.scale
        return net.head(pooled(net.after(x.relu()).relu()))

    net = Net(forward, stem=conv(3, 16), after=conv(16, 10, 1), head=nn.Linear(10, 5))
    net.register_buffer("shift", torch.randn(16, 1, 1))
    net.register_buffer("scale", torch.rand(1, 16, 1, 1) + 0.5, persistent=False)
    return net


class HandMadeNorm(nn.Module):
    """RMS norm as most language models write it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


@case(tokens())
def hand_made_rms_norm():
    """Statistical, recognised by its operators."""
    return Net(
        lambda net, x: net.head(net.mix(net.norm(net.embed(x))).relu().mean(1)),
        embed=nn.Linear(14, 24),
        norm=HandMadeNorm(24),
        mix=nn.Linear(24, 16),
        head=nn.Linear(16, 5),
    )


@case(tokens())
def residual_stream():
    """The width of a pre-norm transformer block is one statistical class."""

    def forward(net, x):
        x = net.embed(x)
        for norm, block in zip(net.norms, net.blocks, strict=True):
            x = x + block(norm(x))
        return net.head(x.mean(1))

    return Net(
        forward,
        embed=nn.Linear(14, 24),
        norms=nn.ModuleList([nn.LayerNorm(24), nn.LayerNorm(24)]),
        blocks=nn.ModuleList(
            nn.Sequential(nn.Linear(24, 40), nn.GELU(), nn.Linear(40, 24)) for _ in range(2)
        ),
        head=nn.Linear(24, 5),
    )


@case(pixels=images(), gate=torch.tensor(0.4))
def inputs_by_keyword():
    """Inputs by name, one of them without axes."""

    def forward(net, *, pixels, gate):
        x = pixels
        return net.head(pooled(net.after(net.stem(x).relu() * gate).relu()))

    return Net(forward, stem=conv(3, 16), after=conv(16, 10, 1), head=nn.Linear(10, 5))


@case([images(), images(3, (6, 10))])
def a_list_of_inputs():
    """Images of different sizes in a list, as detectors take them."""
    return Net(
        lambda net, xs: [net.head(pooled(net.after(net.stem(x).relu()).relu())) for x in xs],
        stem=conv(3, 16),
        after=conv(16, 10, 1),
        head=nn.Linear(10, 5),
    )


@case(images(), images(5))
def two_inputs():
    """Two streams that meet."""

    def forward(net, x, y):
        return net.head(pooled(net.a(x).relu() * net.b(y).sigmoid()))

    return Net(forward, a=conv(3, 16), b=conv(5, 16), head=nn.Linear(16, 5))


@case(images())
def dict_output():
    """Every value of the dict is an output; what only one of them needs can still go."""

    def forward(net, x):
        x = net.stem(x).relu()
        return {"main": net.head(pooled(net.after(x).relu())), "map": [net.map(x), None]}

    return Net(
        forward, stem=conv(3, 16), after=conv(16, 10, 1), map=conv(16, 2), head=nn.Linear(10, 5)
    )


@dataclass
class Result:
    """An output with fields."""

    scores: Tensor
    features: Tensor
    name: str = "result"


@case(images())
def dataclass_output():
    """The returned features keep their width."""

    def forward(net, x):
        x = net.stem(x).relu()
        features = net.after(x)
        return Result(net.head(pooled(features.relu())), features)

    return Net(forward, stem=conv(3, 16), after=conv(16, 10, 1), head=nn.Linear(10, 5))


@case(images())
def unused_layer():
    """A layer that does not run is left as it is."""
    return Net(
        lambda net, x: net.head(pooled(net.stem(x).relu())),
        stem=conv(3, 16),
        auxiliary=conv(16, 10),
        head=nn.Linear(16, 5),
    )


@case(images())
def in_place_activations():
    """In-place operators on views of the same memory."""

    def forward(net, x):
        x = net.stem(x)
        left, right = x.split(8, 1)
        left.relu_()
        right.mul_(0.5).add_(1)
        return net.head(pooled(net.after(F.hardswish(x, inplace=True))))

    return Net(forward, stem=conv(3, 16), after=conv(16, 10, 1), head=nn.Linear(10, 5))


@case(tokens())
def width_in_the_arithmetic():
    """A constant computed from a width: it must not change with it."""

    def forward(net, x):
        x = net.a(x).relu()
        return net.head(net.b(x * x.shape[-1] ** -0.5).relu().mean(1))

    return Net(forward, a=nn.Linear(14, 24), b=nn.Linear(24, 16), head=nn.Linear(16, 5))


@case(tokens())
def mean_over_units():
    """A mean over the units divides by their number; a sum does not."""

    def forward(net, x):
        x = net.a(x).relu()
        return net.head(
            net.b(x).relu().mean(1) + x.mean(-1).mean(1)[:, None] + x.sum((1, 2))[:, None]
        )

    return Net(forward, a=nn.Linear(14, 24), b=nn.Linear(24, 16), head=nn.Linear(16, 5))


@case(images())
def checkpointed():
    """Activation checkpointing runs a function within the forward."""
    from torch.utils.checkpoint import checkpoint

    def forward(net, x):
        x = checkpoint(net.block, net.stem(x).relu(), use_reentrant=False)
        return net.head(pooled(x.relu()))

    return Net(
        forward,
        stem=conv(3, 16),
        block=nn.Sequential(conv(16, 20), nn.ReLU(), conv(20, 12)),
        head=nn.Linear(12, 5),
    )


@case(images())
def scripted_block():
    """A part compiled by TorchScript cannot be re-written; it must be right or left alone."""
    block = torch.jit.trace(nn.Sequential(nn.ReLU(), nn.Hardtanh()), torch.randn(2, 16, 8, 12))
    return Net(
        lambda net, x: net.head(pooled(net.after(net.block(net.stem(x))).relu())),
        stem=conv(3, 16),
        block=block,
        after=conv(16, 10, 1),
        head=nn.Linear(10, 5),
    )


@case(tokens())
def bilinear_layer():
    """nn.Bilinear: (out, in1, in2)."""
    return Net(
        lambda net, x: net.head(net.mix(net.a(x).relu(), net.b(x).relu()).relu().mean(1)),
        a=nn.Linear(14, 12),
        b=nn.Linear(14, 10),
        mix=nn.Bilinear(12, 10, 16),
        head=nn.Linear(16, 5),
    )


@case(words())
def integer_input_and_mask():
    """Token ids, a padding mask made of them, and a masked mean."""

    def forward(net, x):
        mask = (x > 5).float()[..., None]
        h = net.mix(net.embed(x)).relu()
        return net.head((h * mask).sum(1) / mask.sum(1).clamp(min=1))

    return Net(forward, embed=nn.Embedding(50, 24), mix=nn.Linear(24, 16), head=nn.Linear(16, 5))
