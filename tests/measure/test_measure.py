"""``sec.measure`` against closed forms, files on disk and the caller's untouched model."""

import json
import time

import pytest
import torch
from safetensors.torch import save_model
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from secateur.errors import ConfigError, DataError
from secateur.measure import energy, file_bytes, macs, measure, peak_memory
from secateur.measure.latency import speedup, summarize, time_interleaved


def conv_net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, stride=2), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=4, bias=False), nn.Flatten(), nn.Linear(8 * 6 * 6, 5),
    )  # fmt: skip


def test_macs_of_convolutions_and_linears_are_the_closed_form():
    total, by_module = macs(conv_net(), torch.zeros(2, 3, 16, 16))
    expected = {"0": 2 * 8 * 8 * 8 * 27, "3": 2 * 8 * 6 * 6 * 2 * 9, "5": 2 * 5 * 288}
    assert by_module == expected
    assert total == sum(expected.values())


def test_a_parent_counts_its_children_and_shared_calls_count_twice():
    inner = nn.Sequential(nn.Linear(4, 4))
    model = nn.Sequential(inner, nn.ReLU(), inner)
    total, by_module = macs(model, torch.zeros(1, 4))
    assert total == 32
    assert by_module == {"0": 32, "0.0": 32}


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_macs_see_attention_and_recurrent_layers(device):
    with torch.device(device):
        encoder = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        lstm = nn.LSTM(8, 16, num_layers=2, bidirectional=True, batch_first=True)
        tokens, sequence = torch.zeros(3, 7, 16), torch.zeros(2, 5, 8)
    linears = 3 * 7 * (16 * 48 + 16 * 16 + 2 * 16 * 32)
    attention = 3 * 2 * (7 * 7 * 8) * 2
    assert macs(encoder, tokens)[0] == linears + attention
    assert macs(lstm, sequence)[0] == 2 * 5 * 2 * (64 * (8 + 16) + 64 * (32 + 16))


def test_macs_of_a_packed_sequence_count_only_its_tokens():
    lengths = [5, 3]
    packed = pack_padded_sequence(torch.zeros(2, 5, 8), lengths, batch_first=True)
    assert macs(nn.GRU(8, 4, batch_first=True), (packed,))[0] == sum(lengths) * 12 * (8 + 4)


def test_macs_of_matrix_times_vector():
    class Vector(nn.Module):
        def forward(self, matrix, vector):
            return matrix @ vector

    assert macs(Vector(), (torch.zeros(3, 5), torch.zeros(5)))[0] == 15


def test_parameters_buffers_and_tied_weights_are_counted_once():
    model = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 6))
    model[2].weight = model[0].weight
    result = measure(model, torch.zeros(2, 6), repeats=0)
    assert result.parameters == 36 + 6 + 12 + 6
    assert result.parameter_bytes == 4 * result.parameters
    assert result.buffer_bytes == 4 * 12 + 8
    assert result.latency is None


def test_peak_memory_of_a_chain_is_the_largest_neighbouring_pair():
    model = nn.Sequential(nn.Linear(10, 1000), nn.Linear(1000, 3000), nn.Linear(3000, 10))
    memory = peak_memory(model, torch.zeros(1, 10))
    assert memory.peak == 4 * (1000 + 3000)
    assert memory.allocated == 4 * (1000 + 3000 + 10)
    with torch.device("meta"):
        twin = nn.Sequential(nn.Linear(10, 1000), nn.Linear(1000, 3000), nn.Linear(3000, 10))
    assert peak_memory(twin, torch.zeros(1, 10)).peak == memory.peak


def test_views_and_in_place_operators_take_no_memory():
    model = nn.Sequential(nn.Linear(10, 100), nn.ReLU(inplace=True), nn.Unflatten(1, (10, 10)))
    assert peak_memory(model, torch.zeros(1, 10)).peak == 400


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_file_bytes_equal_the_file_that_safetensors_writes(tmp_path, tied, dtype):
    model = nn.Sequential(conv_net(), nn.Linear(5, 5), nn.Linear(5, 5)).to(dtype)
    if tied:
        model[2].weight = model[1].weight
    save_model(model, str(tmp_path / "m.safetensors"))
    assert file_bytes(model) == (tmp_path / "m.safetensors").stat().st_size
    assert file_bytes(model.to("meta")) == file_bytes(model)


def test_energy_is_the_formula_and_says_that_it_is_a_model():
    value = energy(1000, 400, 50)
    assert value.millijoules == pytest.approx((1000 * 4.6 + (400 + 2 * 50) * 160) * 1e-9)
    assert "not a measurement" in value.source
    assert energy(1000, 0, 0, dtype=torch.int8).millijoules == pytest.approx(1000 * 0.23e-9)


def test_timing_is_interleaved_and_finds_the_slower_call():
    order: list[str] = []

    def slow() -> None:
        order.append("a")
        time.sleep(0.006)

    def fast() -> None:
        order.append("b")
        time.sleep(0.002)

    dense, pruned = time_interleaved([slow, fast], repeats=7, warmup=1)
    assert order == ["a", "b"] * 8
    assert len(dense) == len(pruned) == 7
    ratio = speedup(dense, pruned)
    assert ratio.p10 <= ratio.ratio <= ratio.p90
    assert ratio.ratio > 1.2  # how much more is the machine's affair


def test_summary_is_the_median_and_percentiles():
    result = summarize([0.003, 0.001, 0.002, 0.004, 0.005], warmup=2, device="cpu")
    assert result.median_ms == pytest.approx(3)
    assert result.p10_ms == pytest.approx(1.4)
    assert result.p90_ms == pytest.approx(4.6)


def test_against_reports_dense_over_pruned_and_is_json():
    dense, pruned = nn.Linear(256, 512), nn.Linear(256, 128)
    result = measure(pruned, torch.zeros(4, 256), against=dense, repeats=5, threads=1)
    gain = result.against
    assert gain.macs == 4.0
    assert gain.parameters == 4.0
    assert gain.dense.latency.threads == result.latency.threads == 1
    assert gain.speedup.ratio == pytest.approx(
        gain.dense.latency.median_ms / result.latency.median_ms
    )
    document = json.loads(json.dumps(result.to_dict()))
    assert document["against"]["dense"]["macs"] == 4 * 256 * 512
    assert "speed-up" in str(result)


def test_a_sparse_model_is_measured_in_every_format_and_beside_the_sparse_kernel():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 4))
    with torch.no_grad():
        model[0].weight.mul_(torch.rand(512, 256) < 0.02)
    a, b = int(model[0].weight.count_nonzero()), model[2].weight.numel()
    found = measure(model, torch.randn(64, 256), repeats=3, threads=1)
    biases = 512 + 4
    assert found.storage == {
        "dense": 512 * 256 + b + biases,
        "coo": 3 * (a + b) + biases,
        "csr": 2 * (a + b) + 512 + 4 + 2 + biases,
        "csc": 2 * (a + b) + 256 + 512 + 2 + biases,
        "bitmask": a + b + (512 * 256 + b) // 32 + biases,
    }
    csr = found.csr
    assert (csr.layer, csr.rows, csr.columns, csr.tokens) == ("0", 512, 256, 64)
    assert csr.zeros == pytest.approx(0.98, abs=0.005)
    assert csr.csr_ms[0] > csr.csr_ms[-1] > 0  # fifty times as many products
    quicker = [s for s, ms in zip(csr.sparsities, csr.csr_ms, strict=True) if ms < csr.dense_ms]
    assert (csr.break_even is None) == (csr.sparsities[-1] not in quicker)
    for words in (
        "stored as    dense",
        f"csr {found.storage['csr']:,}",
        "CSR kernel   ",
        "64 rows",
    ):
        assert words in str(found)
    would = csr.break_even is not None and csr.break_even <= csr.zeros
    assert ("would be quicker with its weight in CSR" in found.note) == would
    assert found.to_dict()["csr"]["layer"] == "0"


def test_zeros_of_convolutions_have_no_sparse_kernel():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten())
    nn.init.zeros_(model[0].weight)
    found = measure(model, torch.zeros(1, 1, 5, 5), repeats=2, warmup=0)
    assert found.csr is None and "no sparse kernel" in found.note


def test_zeros_are_said_to_bring_no_speed_up():
    model = nn.Linear(10, 10)
    assert measure(model, torch.zeros(1, 10), repeats=0).note == ""
    model.weight.data[:, :5] = 0
    result = measure(model, torch.zeros(1, 10), repeats=0)
    assert result.zeros == pytest.approx(50 / 110)
    assert "no speed-up" in result.note


def test_modes_hooks_threads_and_weights_are_left_as_they_were():
    model = conv_net()
    model[1].eval()
    modes = [m.training for m in model.modules()]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    threads, fast = torch.get_num_threads(), torch.backends.mha.get_fastpath_enabled()
    measure(model, torch.randn(2, 3, 16, 16), repeats=2, threads=1)
    assert [m.training for m in model.modules()] == modes
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.get_num_threads() == threads
    assert torch.backends.mha.get_fastpath_enabled() == fast


def test_inputs_may_be_a_dict_of_keywords():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, left, right=None):
            return self.layer(left) + self.layer(right)

    assert measure(Two(), {"left": torch.zeros(1, 3), "right": torch.zeros(1, 3)}).macs == 12


def test_a_meta_model_is_measured_without_running():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(50_000, 50_000), nn.Linear(50_000, 10))
    result = measure(model, torch.zeros(1, 50_000))
    assert result.macs == 50_000 * 50_010
    assert result.latency is None
    assert result.zeros is None
    assert "meta" in result.note


def test_wrong_inputs_are_one_clear_error_and_leave_the_mode():
    model = conv_net().train()
    with pytest.raises(DataError, match=r"float32\[2, 4\].*tuple of positional"):
        measure(model, torch.zeros(2, 4))
    assert all(m.training for m in model.modules())


def test_lazy_parameters_and_bad_options_are_named():
    with pytest.raises(DataError, match="weight of LazyLinear"):
        measure(nn.LazyLinear(3), torch.zeros(1, 2))
    with pytest.raises(ConfigError, match="repeats=1"):
        measure(nn.Linear(2, 2), torch.zeros(1, 2), repeats=1)
    with pytest.raises(ConfigError, match="threads=0"):
        measure(nn.Linear(2, 2), torch.zeros(1, 2), threads=0)


@pytest.mark.parametrize(
    "name", ["resnet18", "mobilenet_v2", "shufflenet_v2_x1_0", "vit_b_32", "swin_t"]
)
def test_macs_and_parameters_are_those_that_torchvision_states(name):
    models = pytest.importorskip("torchvision.models")
    stated = next(iter(models.get_model_weights(name))).meta
    with torch.device("meta"):
        model = models.get_model(name)
    result = measure(model, torch.zeros(1, 3, 224, 224))
    assert result.macs / 1e9 == pytest.approx(stated["_ops"], abs=6e-4)
    assert result.parameters == stated["num_params"]


def test_distances_count_as_the_product_that_they_are():
    """|a - b|^2 by one matrix product, its inner size that of the points and the two squares."""

    class Distances(nn.Module):
        def forward(self, x):
            return torch.cdist(x, x)

    x = torch.zeros(3, 40, 7)
    assert macs(Distances(), x)[0] == 3 * 40 * 40 * (7 + 2)
