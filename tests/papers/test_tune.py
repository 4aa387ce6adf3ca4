"""Tuning of pruned blocks, against Adam written out and against what must not change."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

import secateur as sec
from secateur.engine import layerwise
from secateur.engine.tune import error
from secateur.errors import ConfigError, DataError, StoreError

SAMPLES = [torch.randn(5, 6, generator=torch.Generator().manual_seed(i)) for i in range(8)]
SIZES = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 100, "max_position_embeddings": 64,
}  # fmt: skip


def layers() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 4))


def llama() -> nn.Module:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES)).eval()


def texts(count: int = 8) -> list[dict[str, Tensor]]:
    torch.manual_seed(1)
    return [{"input_ids": torch.randint(0, 100, (1, 32))} for _ in range(count)]


def pruned(model: nn.Module, data: list, tune: int, **how: object) -> nn.Module:
    how = {"method": "wanda", "amount": 0.5, **how}
    return sec.sparsify(model, data=data, tune=tune, progress=False, **how).model  # type: ignore[arg-type]


def naive(
    weight: Tensor, bias: Tensor, mask: Tensor, inputs: list[Tensor], dense: Tensor
) -> Tensor:
    """Two passes of Adam in float64, with the gradient of the relative error worked out by hand."""
    w, m, v = weight.double(), torch.zeros(()), torch.zeros(())
    rate, steps = 0.02 * w.abs().mean(), 2 * len(inputs)
    for k in range(1, steps + 1):
        x = inputs[(k - 1) % len(inputs)].double()
        aim = x @ dense.double().T + bias.double()
        size = aim.square().mean(1)
        size = size + 1e-3 * size.mean()
        difference = x @ w.T + bias.double() - aim
        g = 2 * (difference / size[:, None]).T @ x / difference.numel() * mask
        m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g**2
        factor = min(4 * k / steps, 1 + 1 / steps - k / steps)
        step = (m / (1 - 0.9**k)) / ((v / (1 - 0.95**k)).sqrt() + 1e-8)
        w = w - rate * factor * step * mask
    return w


def test_tuning_is_adam_on_the_relative_error_of_each_block() -> None:
    dense, before, after = (layers(), *(pruned(layers(), SAMPLES, tune) for tune in (0, 2)))
    first = naive(before[0].weight, dense[0].bias, before[0].weight != 0, SAMPLES, dense[0].weight)
    torch.testing.assert_close(after[0].weight.double(), first, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(after[0].weight, before[0].weight, atol=1e-3)
    # The second layer sees what the first one gives after its tuning.
    seen = [after[0](x).detach() for x in SAMPLES]
    start = pruned(nn.Sequential(copy.deepcopy(dense[1])), seen, 0)[0].weight
    second = naive(start, dense[1].bias, start != 0, seen, dense[1].weight)
    torch.testing.assert_close(after[1].weight.double(), second, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("how", [{"method": "magnitude"}, {"propagate": "dense"}, {}])
def test_what_stays_moves_towards_the_dense_block_and_nothing_else_moves(how: dict) -> None:
    lost = []
    for tune in (0, 4):
        model = llama()
        before = {n: p.clone() for n, p in model.named_parameters()}
        result = sec.sparsify(
            model, how.get("method", "wanda"), amount=0.5, data=texts(), tune=tune, inplace=True,
            progress=False, propagate=how.get("propagate", "pruned"),
        )  # fmt: skip
        for name, p in model.named_parameters():
            assert p.requires_grad and p.grad is None
            if name in result.masks:
                assert bool((p[~result.masks[name]] == 0).all())
                assert int((p != 0).sum()) == p.numel() // 2
            else:
                assert torch.equal(p, before[name])
        with torch.no_grad():
            aim = llama()(texts(9)[-1]["input_ids"]).logits  # a text that it was not tuned on
            lost.append(float((model(texts(9)[-1]["input_ids"]).logits - aim).square().mean()))
    assert lost[1] < 0.9 * lost[0]


def test_small_steps_are_not_lost_in_a_short_type() -> None:
    data = [x.bfloat16() for x in SAMPLES]
    short = pruned(layers().bfloat16(), data, 2)
    whole = pruned(layers().bfloat16().float(), [x.float() for x in data], 2)
    assert short[0].weight.dtype == torch.bfloat16
    torch.testing.assert_close(short[0].weight.float(), whole[0].weight, rtol=0.02, atol=0.005)


def test_padding_does_not_count() -> None:
    mask = torch.tensor([[1, 1, 0]])
    one, other = torch.randn(1, 3, 4), torch.randn(1, 3, 4)
    padded = error((one, "other outputs"), (other, "other outputs"), [mask])
    other[:, 2] = other[:, :2].square().mean().sqrt()  # as large as the others, on the mean
    assert float(padded) != float(error(one, other))
    torch.testing.assert_close(padded, error(one[:, :2], other[:, :2]), rtol=2e-3, atol=0)


def test_the_default_tunes_where_a_pattern_leaves_nothing_to_divide() -> None:
    default, once, never = (
        sec.sparsify(llama(), pattern="2:4", data=texts(), progress=False, **how).model.state_dict()
        for how in ({}, {"tune": 1}, {"tune": 0})
    )
    assert all(torch.equal(default[name], once[name]) for name in default)
    assert not all(torch.equal(default[name], never[name]) for name in default)


def test_bad_values_are_one_error_and_change_nothing() -> None:
    model = layers()
    for tune in (-1, 0.5):
        with pytest.raises(ConfigError, match="whole number of passes"):
            pruned(model, SAMPLES, tune, inplace=True)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="calibration"):
        sec.sparsify(model, "magnitude", amount=0.5, tune=1, progress=False)
    assert all(
        torch.equal(p, q) for p, q in zip(model.parameters(), layers().parameters(), strict=True)
    )


def test_a_run_that_was_interrupted_goes_on_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = {"checkpoint": tmp_path / "run", "spill": tmp_path / "run"}
    solve = layerwise._solve_block

    def interrupted(step: Any, job: Any) -> Any:
        if step.number:
            raise KeyboardInterrupt
        return solve(step, job)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(layerwise, "_solve_block", interrupted)
        pruned(llama(), texts(), 1, **how)
    with pytest.raises(StoreError, match="another run"):
        pruned(llama(), texts(), 2, **how)
    resumed, whole = pruned(llama(), texts(), 1, **how), pruned(llama(), texts(), 1)
    assert all(torch.equal(p, resumed.get_parameter(n)) for n, p in whole.named_parameters())


def test_a_checkpoint_on_disk_is_tuned_as_a_model_in_memory(tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path / "dense")  # type: ignore[operator]
    folders = tmp_path / "dense", tmp_path / "out"
    how: dict[str, Any] = {"pattern": "2:4", "data": texts(), "progress": False}
    result = sec.sparsify_folder(*folders, spill=True, **how)
    there = LlamaForCausalLM.from_pretrained(result.folder)
    here = sec.sparsify(llama(), **how).model
    for name, p in here.named_parameters():
        torch.testing.assert_close(there.get_parameter(name), p, rtol=1e-4, atol=1e-6)


def test_float16_keeps_the_gradients_of_a_wide_block() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(512, 512, bias=False))
    data = [torch.randn(1024, 512) for _ in range(2)]
    moved = {}
    for dtype in (torch.float32, torch.float16):
        made = copy.deepcopy(net).to(dtype)
        before = pruned(made, [x.to(dtype) for x in data], 0)[0].weight.float()  # type: ignore[index]
        after = pruned(made, [x.to(dtype) for x in data], 1)[0].weight.float()  # type: ignore[index]
        moved[dtype] = (after - before).detach()
    one, other = moved.values()
    assert float((one - other).norm() / one.norm()) < 0.1


def test_errors_are_those_behind_the_tuning() -> None:
    dense = layers()
    result = sec.sparsify(dense, "sparsegpt", amount=0.5, data=SAMPLES, tune=2, progress=False)
    x = torch.cat(SAMPLES)
    for number, row in enumerate(result.report.rows):  # each layer is a block, behind those before
        now, before = result.model[number], dense[number]
        change = (x @ (now.weight - before.weight).T).detach()
        naive = float(change.square().sum() / (x @ before.weight.T).detach().square().sum())
        assert row.error == pytest.approx(naive, rel=1e-3)
        x = now(x).detach()


class Detached(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def test_a_block_without_gradients_is_said_to_be_untuned() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(Detached(), nn.Linear(6, 6))
    tuned, not_tuned = (
        sec.sparsify(net, "wanda", amount=0.5, data=SAMPLES, tune=n, progress=False) for n in (2, 0)
    )
    assert len(tuned.report.notes) == 1 and "0.layer was not tuned" in tuned.report.notes[0]
    assert torch.equal(tuned.model[0].layer.weight, not_tuned.model[0].layer.weight)
    assert not torch.equal(tuned.model[1].weight, not_tuned.model[1].weight)
