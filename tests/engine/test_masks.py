"""MaskSet: set algebra, exact counts, files."""

import copy

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from secateur.engine.masks import MaskSet, keep_top, weights_of
from secateur.errors import ConfigError, PlanError, StoreError


def random_masks(seed: int, shapes=None) -> MaskSet:
    generator = torch.Generator().manual_seed(seed)
    shapes = shapes or {"a": (3, 7), "b": (11,), "c": (2, 2, 2)}
    return MaskSet({n: torch.rand(s, generator=generator) > 0.5 for n, s in shapes.items()})


def test_set_algebra_is_that_of_python_sets() -> None:
    a, b = random_masks(0), random_masks(1)

    def kept(masks: MaskSet) -> set:
        return {(n, i) for n, m in masks.items() for i in m.flatten().nonzero().flatten().tolist()}

    assert kept(a & b) == kept(a) & kept(b)
    assert kept(a | b) == kept(a) | kept(b)
    assert kept(a - b) == kept(a) - kept(b)
    assert kept(~a) == kept(a | ~a) - kept(a)
    assert (a & b) <= a and not a <= (a & b)
    assert a.kept == len(kept(a)) and a.total == 3 * 7 + 11 + 8


def test_a_parameter_that_only_one_names_is_whole_in_the_other() -> None:
    a, b = MaskSet({"x": torch.tensor([True, False])}), MaskSet({"y": torch.tensor([False])})
    assert (a & b)["x"].tolist() == [True, False] and (a & b)["y"].tolist() == [False]
    assert (a | b)["x"].tolist() == [True, True]


def test_exactly_so_many_are_kept_whatever_the_ties() -> None:
    scores = torch.tensor([1.0, 3.0, 1.0, 1.0, float("nan"), 3.0])
    for keep in range(7):
        assert int(keep_top(scores, keep).sum()) == keep
    assert keep_top(scores, 3).tolist() == [True, True, False, False, False, True]
    assert keep_top(torch.zeros(1000), 10)[:10].all()


def test_a_file_holds_a_bit_an_element_and_gives_the_same_back(tmp_path) -> None:
    masks = random_masks(2, {"a.weight": (13, 5, 3), "empty": (0, 4), "one": (1,)})
    masks.save(tmp_path / "masks.safetensors")
    assert MaskSet.load(tmp_path / "masks.safetensors") == masks
    assert load_file(tmp_path / "masks.safetensors")["a.weight"].numel() == -(-13 * 5 * 3 // 8)


@pytest.mark.parametrize("how", ["missing", "truncated", "other", "shape", "text"])
def test_damaged_files_give_one_clear_error(tmp_path, how) -> None:
    path = tmp_path / "masks.safetensors"
    random_masks(0).save(path)
    if how == "missing":
        path.unlink()
    elif how == "truncated":
        path.write_bytes(path.read_bytes()[:-3])
    elif how == "other":
        from safetensors.torch import save_file

        save_file({"a": torch.zeros(1)}, path)
    elif how == "shape":
        path.write_bytes(path.read_bytes().replace(b"[3, 7]", b"[9, 7]"))
    else:
        path.write_bytes(b"no such thing")
    with pytest.raises(StoreError, match="masks"):
        MaskSet.load(path)


def test_masks_of_another_model_leave_it_as_it_was() -> None:
    net = nn.Linear(4, 3)
    before = copy.deepcopy(net.state_dict())
    for masks in ({"weight": torch.ones(3, 5).bool()}, {"wieght": torch.ones(3, 4).bool()}):
        with pytest.raises(PlanError, match="weight"):
            MaskSet(masks).apply(net)
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    with pytest.raises(ConfigError, match="bool"):
        MaskSet({"weight": torch.ones(3, 4)})


def test_what_goes_is_zero_and_the_rest_untouched() -> None:
    net = nn.Linear(4, 3)
    weight = net.weight.detach().clone()
    mask = torch.arange(12).view(3, 4) % 3 == 0
    MaskSet({"weight": mask}).apply(net)
    assert torch.equal(net.weight, weight * mask)


def test_weights_are_what_the_literature_prunes() -> None:
    net = nn.ModuleDict(
        {
            "emb": nn.Embedding(5, 4),
            "conv": nn.Conv2d(1, 4, 3),
            "norm": nn.LayerNorm([4, 4]),
            "rnn": nn.LSTM(4, 3),
            "head": nn.Linear(4, 2),
        }
    )
    assert not {"emb.weight", "norm.weight"} & set(weights_of(net))
    assert {"conv.weight", "head.weight", "rnn.weight_hh_l0"} <= set(weights_of(net))
    assert "head.weight" not in weights_of(net, ["head"])
    assert "conv.weight" not in weights_of(net, ["conv.*"])
    with pytest.raises(ConfigError, match="heat"):
        weights_of(net, ["heat"])
