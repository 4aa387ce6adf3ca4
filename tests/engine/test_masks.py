"""MaskSet: set algebra, exact counts, files."""

import copy

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import secateur as sec
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


@pytest.mark.parametrize("seed", range(5))
def test_what_is_selected_is_what_a_stable_sort_puts_first(seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(-3, 3, (4, 50), generator=generator).float()
    scores[scores == -3] = -torch.inf
    scores[0, :3], scores[1, 0] = torch.inf, torch.nan
    values = [-torch.inf if s != s else s for s in scores.flatten().tolist()]
    order = sorted(range(200), key=lambda i: -max(min(values[i], 9), -9))
    for keep in (0, 1, 2, 50, 120, 199, 200, 300):
        for dtype in (torch.float64, torch.float32, torch.bfloat16):
            kept = keep_top(scores.to(dtype), keep).flatten().nonzero().flatten().tolist()
            known = [i for i in order if i != 50][: min(keep, 199)]  # NaN is the last of all
            assert kept == sorted(known + [50] * (keep >= 200))


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


class Block(nn.Module):
    """A module with matrices of its own, and with what only looks like one."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, add_bias_kv=True)
        self.last = nn.Linear(8, 1)
        self.mix = nn.Parameter(torch.ones(8, 8))
        self.experts = nn.Parameter(torch.ones(3, 8, 8))
        self.class_token = nn.Parameter(torch.ones(1, 1, 8))
        self.pos_embedding = nn.Parameter(torch.ones(1, 5, 8))
        self.positional_embedding = nn.Parameter(torch.ones(5, 8))
        self.relative_position_bias_table = nn.Parameter(torch.ones(9, 2))
        self.layer_scale = nn.Parameter(torch.ones(8, 1, 1))


def test_only_matrices_of_a_modules_own_count() -> None:
    assert set(weights_of(Block())) == {
        "mix",
        "experts",
        "attention.in_proj_weight",
        "attention.out_proj.weight",
        "last.weight",
    }


@pytest.mark.parametrize("head_first", [True, False])
def test_what_is_shared_with_an_embedding_stays_dense(head_first) -> None:
    embedding, head = nn.Embedding(20, 8), nn.Linear(8, 20, bias=False)
    head.weight = embedding.weight
    layers = [head, embedding] if head_first else [embedding, head]
    assert list(weights_of(nn.ModuleList([*layers, nn.Linear(8, 8)]))) == ["2.weight"]


def test_positions_and_scales_of_real_networks_stay_dense() -> None:
    models = pytest.importorskip("torchvision").models
    with torch.device("meta"):
        vit, convnext = models.vit_b_16(), models.convnext_tiny()
    for net in (vit, convnext):
        kept = weights_of(net)
        words = ("token", "embedding", "scale", "norm", "bias")
        assert not [n for n in kept if any(word in n for word in words)]
    layers = (nn.Linear, nn.Conv2d)
    assert len(weights_of(convnext)) == sum(isinstance(m, layers) for m in convnext.modules())
    assert "encoder.layers.encoder_layer_0.self_attention.in_proj_weight" in weights_of(vit)


def test_a_mask_set_may_name_what_else_stays_dense() -> None:
    net = Block()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    mask = torch.arange(40).view(1, 5, 8) % 2 == 0
    handle = sec.attach(net, optimizer, MaskSet({"pos_embedding": mask}))
    assert handle.sparsity == 0.5 and torch.equal(net.pos_embedding != 0, mask)


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
