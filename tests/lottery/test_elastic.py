"""Elastic tickets fit the other depth, copy what the map says, and change nothing else."""

import pytest
import torch

from secateur import zoo
from secateur.engine.masks import MaskSet, keep_top, weights_of
from secateur.errors import ConfigError
from secateur.lottery import elastic, evenly
from secateur.zoo.networks.resnet20 import ResNet

STAGES = ("layer1", "layer2", "layer3")


def ticket(depth: int):
    torch.manual_seed(depth)
    net = ResNet((depth,) * 3)
    masks = MaskSet({n: keep_top(p.abs(), p.numel() // 4) for n, p in weights_of(net).items()})
    return net, masks


@pytest.mark.parametrize("order", ["interleave", "append"])
@pytest.mark.parametrize(("source", "target"), [(3, 5), (3, 9), (9, 3), (5, 3), (3, 3)])
def test_a_ticket_of_one_depth_fits_another(source, target, order) -> None:
    net, masks = ticket(source)
    sources = evenly(source, target, order)
    assert len(sources) == target
    assert sources[0] == 0
    assert all(0 < s < source for s in sources[1:])
    stages = dict.fromkeys(STAGES, sources)
    other = ResNet((target,) * 3)
    other.load_state_dict(elastic(net.state_dict(), stages))  # strict: every key, every shape
    moved = MaskSet(elastic(masks, stages))
    moved.check(other)
    for name, mask in moved.items():
        origin = name
        for stage in STAGES:
            for j, s in enumerate(sources):
                if name.startswith(f"{stage}.{j}."):
                    origin = name.replace(f"{stage}.{j}.", f"{stage}.{s}.", 1)
        assert torch.equal(mask, masks[origin])
        assert torch.equal(other.get_parameter(name), net.get_parameter(origin))
    if source == target:
        assert moved == masks


def test_there_and_back_is_the_ticket_that_one_started_from() -> None:
    _, masks = ticket(3)
    there = elastic(masks, dict.fromkeys(STAGES, evenly(3, 9)))
    back = elastic(there, dict.fromkeys(STAGES, evenly(9, 3)))
    assert MaskSet(back) == masks


def test_the_maps_of_the_papers_resnets() -> None:
    assert evenly(3, 5) == [0, 1, 1, 2, 2]  # ResNet-20 to ResNet-32
    assert evenly(5, 9) == [0, 1, 1, 2, 2, 3, 3, 4, 4]  # ResNet-32 to ResNet-56
    assert evenly(3, 9) == [0, 1, 1, 1, 1, 2, 2, 2, 2]


def test_what_does_not_fit_is_refused() -> None:
    net = zoo.build("resnet8")
    with pytest.raises(ConfigError, match="at least one other"):
        evenly(1, 3)
    with pytest.raises(ConfigError, match="has the blocks"):
        elastic(net.state_dict(), {"layer1": [0, 1]})
    with pytest.raises(ConfigError, match="has the blocks \\[\\]"):
        elastic(net.state_dict(), {"layer9": [0]})
    with pytest.raises(ConfigError, match="not numbered"):
        elastic(net.state_dict(), {"layer1.0": [0]})
