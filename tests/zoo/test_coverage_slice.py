"""A slice of ``make zoo``: a few quick models of every set are proven, and the check can fail."""

import os
import signal
import time

import pytest
import torch
from benchmarks.coverage.case import Case, cases
from benchmarks.coverage.cell import passed, statistical_ok, try_case
from benchmarks.coverage.forked import Child
from benchmarks.coverage.oracle import NeutralNorms, difference, masked, outputs
from benchmarks.coverage.page import cause
from benchmarks.coverage.randomise import randomise, settle
from torch import nn

SLICE = {
    "recurrent": ["lstm_stacked_bidirectional", "gru_packed", "lstmcell_loop"],
    "points": ["pointnet_segmentation", "dgcnn"],
    "unet": ["unet", "diffusion_unet"],
    "geometric": ["gcn", "gat", "model_gin"],
    "ultralytics": ["yolov8n-cls"],
    "transformers": ["bert", "llama_grouped", "t5", "swin", "wav2vec2", "mamba"],
    "timm": ["test_convnext", "fasternet_t0"],
    "torchvision": ["shufflenet_v2_x0_5", "mobilenet_v3_small"],
    "segmentation": ["lraspp_mobilenet_v3_large"],
}
NEEDS = {
    "geometric": "torch_geometric",
    "ultralytics": "ultralytics",
    "transformers": "transformers",
    "timm": "timm",
    "torchvision": "torchvision",
    "segmentation": "torchvision",
}


@pytest.mark.parametrize(
    ("group", "name"), [(group, name) for group, names in SLICE.items() for name in names]
)
def test_a_random_half_of_every_class_goes_and_the_rest_computes_the_same(group, name):
    if group in NEEDS:
        pytest.importorskip(NEEDS[group])
    (case,) = cases([group], [name])
    row = {}
    try_case(case, row.update)
    assert passed(row), (cause(row), row.get("trace"))
    assert statistical_ok(row), (cause(row), row.get("trace"))


def network():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.Flatten()
    ).eval()
    randomise(net)
    return net


def test_the_masked_network_equals_the_one_sliced_by_hand_and_no_other():
    net, x = network(), (torch.randn(2, 3, 5, 5),)
    settle(net, x, {})
    stays = torch.tensor([True, False, True, True, False, True, False, True])
    kept = {f"{i}.{n}": [((0,), stays)] for i in (0, 1) for n in ("weight", "bias")}
    kept |= {"1.running_mean": [((0,), stays)], "1.running_var": [((0,), stays)]}
    kept["3.weight"] = [((1,), stays)]
    reference = outputs(masked(net, kept), x, {})

    def sliced(choice):
        small = nn.Sequential(
            nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 4, 1), nn.Flatten()
        ).eval()
        for name, value in net.state_dict().items():
            wide = value[:, choice] if name == "3.weight" else value
            narrow = value[choice] if name[0] in "01" and value.dim() else wide
            small.state_dict()[name].copy_(narrow)
        return outputs(small, x, {})

    assert difference(reference, sliced(stays)) < 1e-6
    wrong = torch.tensor([True, True, False, True, False, True, False, True])
    assert difference(reference, sliced(wrong)) > 1e-2


def test_randomised_weights_leave_no_bias_at_zero_and_no_scale_at_one():
    net = network()
    assert net[1].weight.std() > 0.01 and net[1].bias.abs().min() > 0
    assert net[1].running_var.min() >= 0.5 and net[1].running_mean.abs().max() > 0.01


def test_neutral_norms_make_a_narrowed_layer_norm_equal_to_a_masked_one():
    norm, x = nn.LayerNorm(6), torch.randn(3, 6)
    x[:, 4:] = 0
    narrow = nn.LayerNorm(4)
    with torch.no_grad():
        norm.weight[4:], norm.bias[4:] = 0, 0
        assert not torch.allclose(norm(x)[:, :4], narrow(x[:, :4]), atol=1e-3)
        with NeutralNorms():
            assert torch.allclose(norm(x)[:, :4], narrow(x[:, :4]))


def finish(child):
    while (row := child.poll()) is None:
        time.sleep(0.01)
    return row


def test_a_crash_a_hang_and_an_error_of_one_model_are_results():
    def crash(send):
        send({"stage": "trace"})
        os.kill(os.getpid(), signal.SIGKILL)

    def hang(send):
        send({"stage": "plan"})
        while True:
            pass

    row = finish(Child(crash, 30, 4))
    assert row == {"stage": "trace", "cause": "killed by SIGKILL"}
    row = finish(Child(hang, 0.5, 4))
    assert row["stage"] == "plan" and row["cause"].startswith("not finished after")

    def broken():
        raise ValueError("no such network")

    row = {}
    try_case(Case("unet", "broken", broken), row.update)
    assert row["cause"] == "build: ValueError: no such network"
    assert not passed(row) and cause(row) == row["cause"]
