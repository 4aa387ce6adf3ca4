"""``sec.prune`` does what its parts do by hand, and leaves the caller's model alone."""

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.data import DataLoader

import secateur as sec
from secateur.engine.checkpoint import digest
from secateur.plan.replan import replan

QUIET: dict[str, Any] = {"progress": False, "measure": {"repeats": 2, "warmup": 1}}
UNTIMED: dict[str, Any] = {"progress": False, "measure": False}


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def hidden(width: int = 16) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 12), nn.ReLU(), nn.Linear(12, 3)
    )


def test_one_call_equals_its_parts(net: nn.Module, inputs: Tensor) -> None:
    result = sec.prune(net, inputs, amount=0.4, criterion="l1", scope="global", **QUIET)
    plan = sec.plan(sec.trace(net, inputs), amount=0.4, criterion="l1", scope="global")
    by_hand = plan.apply(net)
    assert result.plan.removed == plan.removed
    assert_close(dict(result.model.state_dict()), dict(by_hand.state_dict()), rtol=0, atol=0)
    assert result.verification is not None and result.verification.ok
    assert result.report.before.parameters == parameters(net)
    assert result.report.after.parameters == parameters(by_hand)
    assert {x.name: x.before - x.after for x in result.report.layers if x.before > x.after} == (
        plan.removed
    )


def test_the_callers_model_and_generators_stay_as_they_were(
    net: nn.Module, inputs: Tensor, loader: DataLoader, snapshot: Any, accuracy: Any
) -> None:
    net.train()
    net.norm.eval()
    net.inner.register_forward_hook(lambda *_: None)
    net.stem.weight.requires_grad_(False)
    before = snapshot(net)
    assert loader.generator is not None
    order = loader.generator.get_state()
    sec.prune(
        net,
        inputs,
        amount=0.4,
        criterion="taylor",
        data=loader,
        recovery=["bn", ("fine-tune", {"steps": 2})],
        evaluate=accuracy,
        schedule="linear",
        steps=2,
        **QUIET,
    )
    assert snapshot(net) == before
    assert torch.equal(order, loader.generator.get_state())


@pytest.mark.parametrize("metric", ["params", "macs"])
@pytest.mark.parametrize("steps", [1, 3])
def test_a_budget_is_met(metric: str, steps: int) -> None:
    net, inputs = sec.zoo.load("resnet8"), sec.zoo.example_inputs("resnet8")
    schedule = "one-shot" if steps == 1 else "cubic"
    result = sec.prune(
        net, inputs, keep={metric: 0.5}, scope="global", schedule=schedule, steps=steps, **QUIET
    )
    if metric == "params":
        share = parameters(result.model) / parameters(net)
    else:
        share = sec.measure(result.model, inputs, repeats=0).macs / (
            sec.measure(net, inputs, repeats=0).macs
        )
    assert share == pytest.approx(0.5, rel=0.02)


def test_a_budget_that_what_is_gone_forbids_is_missed_aloud() -> None:
    net, x = nn.Sequential(nn.Linear(6, 60), nn.ReLU(), nn.Linear(60, 8)), torch.randn(2, 6)
    graph = sec.trace(net, x)
    gone = sec.plan(graph, amount=0.8)
    target = {"amount": None, "keep": {"params": 0.5}, "overrides": None}
    plan = replan(graph, gone, sec.trace(gone.apply(), x), target, criterion="l2")
    (note,) = (n for n in plan.notes if "nearest" in n)
    before, after = (sum(p.numel() for p in m.parameters()) for m in (net, plan.apply()))
    assert f"{after / before / 0.5:.3f} of it is used" in note


@pytest.mark.parametrize(("params", "steps"), [(0.3, 3), (0.4, 4), (0.4, 2), (0.5, 3)])
def test_the_budget_of_several_steps_is_met_where_units_are_large(params, steps) -> None:
    block = nn.TransformerEncoderLayer(16, 4, 32 if params == 0.3 else 64, batch_first=True)
    net = nn.Sequential(nn.Embedding(40, 16), block, nn.Linear(16, 6))
    how: dict[str, Any] = {"schedule": "cubic", "steps": steps, "criterion": "random", **UNTIMED}
    result = sec.prune(net, torch.zeros(4, 9, dtype=torch.long), keep={"params": params}, **how)
    before, after = (sum(p.numel() for p in m.parameters()) for m in (net, result.model))
    assert abs(after / before / params - 1) <= 0.02, result.plan.notes


def test_steps_follow_the_schedule_and_make_one_plan(net: nn.Module, inputs: Tensor) -> None:
    result = sec.prune(
        net, inputs, amount=0.6, schedule="linear", steps=3, scope="global", **UNTIMED
    )
    units = 8 + 12 + 16
    for number, entry in enumerate(result.history, 1):
        assert sum(entry["removed"].values()) == pytest.approx(0.2 * number * units, abs=1)
        assert entry["proof"]["ok"]
    again = result.plan.apply(net)
    assert_close(dict(again.state_dict()), dict(result.model.state_dict()), rtol=0, atol=0)
    assert result.verification is not None and result.verification.ok


def test_iterative_pruning_equals_the_loop_written_out() -> None:
    torch.manual_seed(3)
    net = hidden()
    x = torch.randn(4, 8)
    result = sec.prune(net, x, amount=0.5, schedule="linear", steps=4, **UNTIMED)
    first, second, third = (net[i].weight.detach().double() for i in (0, 2, 4))
    ours = [list(range(16)), list(range(12))]
    for step in range(1, 5):
        a, b = ours
        upper = first[a].square().sum(1) + second[b][:, a].square().sum(0)
        lower = second[b][:, a].square().sum(1) + third[:, b].square().sum(0)
        for k, (scores, size) in enumerate([(upper, 16), (lower, 12)]):
            stay = round(size * (1 - step / 8) - 1e-6)
            best = scores.argsort(descending=True)[:stay].sort().values.tolist()
            ours[k] = [ours[k][i] for i in best]
    for name, kept in zip(("0", "2"), ours, strict=True):
        assert result.plan.keep[name].nonzero().flatten().tolist() == kept


def test_steps_go_through_a_forward_that_was_corrected_already() -> None:
    """Swin's attention reshapes to sizes of its input, which pruned heads no longer have."""
    swin = pytest.importorskip("torchvision.models.swin_transformer").SwinTransformer
    torch.manual_seed(0)
    net = swin([4, 4], 24, [1, 1], [2, 4], [4, 4], num_classes=5).eval()
    x = torch.randn(2, 3, 32, 32)
    at_once = sec.prune(net, x, amount=0.5, **UNTIMED)
    result = sec.prune(net, x, amount=0.5, schedule="linear", steps=3, **UNTIMED)
    assert result.plan.notes == ()
    assert {n: int(m.sum()) for n, m in result.plan.keep.items()} == {
        n: int(m.sum()) for n, m in at_once.plan.keep.items()
    }
    assert all(entry["proof"]["ok"] for entry in result.history)
    assert_close(result.model(x), result.plan.apply(net)(x), rtol=0, atol=0)


def test_a_step_between_two_widths_is_passed_over() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 6))
    how: dict[str, Any] = {"schedule": "linear", "steps": 4, "scope": "global", **UNTIMED}
    result = sec.prune(net, torch.randn(2, 6), keep={"macs": 0.5}, **how)
    assert [entry["step"] for entry in result.history] == [2, 4]  # 0.875 and 0.625: no such width
    assert result.model[0].out_features == 2


class Biased:
    """A recovery that gives the second layer the bias it lacks: what each unit's index says."""

    def heal(self, model: nn.Module, plan: Any = None, *_: Any) -> dict[str, Any]:
        if model[2].bias is None:
            model[2].bias = nn.Parameter(plan.keep["2"].nonzero().flatten().float())
        return {"recovery": "biased"}


@pytest.mark.parametrize("how", [{}, {"schedule": "linear", "steps": 3}, {"inplace": True}])
def test_a_bias_that_recovery_adds_goes_along(how: dict[str, Any]) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(5, 9), nn.ReLU(), nn.Linear(9, 12, bias=False), nn.ReLU(), nn.Linear(12, 2)
    )
    x = torch.randn(3, 5)
    result = sec.prune(net, x, amount=0.5, recovery=Biased(), **how, **UNTIMED)
    assert result.model[2].bias.tolist() == result.plan.keep["2"].nonzero().flatten().tolist()
    assert result.model(x).shape == (3, 2)
    assert (result.model is net) == bool(how.get("inplace"))


class Noted:
    """A recovery that notes what it was given and moves every weight."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def heal(
        self, model: nn.Module, plan: Any = None, data: Any = None, teacher: Any = None
    ) -> dict[str, Any]:
        self.calls.append({"plan": plan, "data": data, "teacher": teacher, "model": model})
        with torch.no_grad():
            for p in model.parameters():
                p.add_(1)
        return {"recovery": "noted"}


def test_recovery_runs_after_every_step_with_the_dense_model_as_teacher(
    net: nn.Module, inputs: Tensor
) -> None:
    noted = Noted()
    data = [inputs]
    result = sec.prune(
        net, inputs, amount=0.4, schedule="linear", steps=2, recovery=noted, data=data, **UNTIMED
    )
    assert [c["teacher"] is net and c["data"] is data for c in noted.calls] == [True, True]
    assert noted.calls[-1]["model"] is result.model
    assert noted.calls[-1]["plan"].removed == result.plan.removed
    # what is left was moved twice, once a step, and nothing else happened to it
    moved = result.plan.apply(net).head.bias + 2
    assert_close(result.model.head.bias, moved)


def test_healing_brings_accuracy_back_and_the_report_says_so(
    net: nn.Module, inputs: Tensor, loader: DataLoader, accuracy: Callable[[nn.Module], float]
) -> None:
    result = sec.prune(
        net,
        inputs,
        amount=0.4,
        criterion="taylor",
        data=loader,
        recovery=("fine-tune", {"epochs": 5, "lr": 0.02}),
        evaluate=accuracy,
        **QUIET,
    )
    record = result.report
    assert record.unhealed is not None and record.unhealed.accuracy is not None
    assert record.before.accuracy == accuracy(net)
    assert record.after.accuracy == accuracy(result.model)
    assert record.unhealed.accuracy == accuracy(result.plan.apply(net))
    assert record.unhealed.accuracy + 0.05 < record.after.accuracy
    assert [step.step for step in record.history] == [6, 12, 18, 24, 30]
    assert record.weights is not None and record.weights.recovered is not None
    assert sum(record.weights.recovered.counts) == sum(
        p.numel() for p in result.model.parameters() if p.ndim > 1
    )
    assert sec.report.Record.from_dict(record.to_dict()) == record


def test_the_same_arguments_give_the_same_model(
    net: nn.Module, inputs: Tensor, loader: DataLoader
) -> None:
    def run(noise: int) -> str:
        torch.manual_seed(noise)
        result = sec.prune(
            net, inputs, amount=0.4, criterion="random", data=loader, seed=7,
            recovery=("fine-tune", {"steps": 3}), **UNTIMED,
        )  # fmt: skip
        return digest(dict(result.model.state_dict()))

    assert run(1) == run(2)


def test_inplace_gives_the_callers_own_module_and_parameters(
    net: nn.Module, inputs: Tensor, loader: DataLoader
) -> None:
    how: dict[str, Any] = {
        "amount": 0.4, "data": loader, "recovery": ("fine-tune", {"steps": 3}), **UNTIMED,
    }  # fmt: skip
    other = sec.prune(net, inputs, **how).model
    identity = {n: id(p) for n, p in net.named_parameters()}
    result = sec.prune(net, inputs, inplace=True, **how)
    assert result.model is net
    assert {n: id(p) for n, p in net.named_parameters()} == identity
    assert_close(dict(net.state_dict()), dict(other.state_dict()), rtol=0, atol=0)
    assert_close(net(inputs), other(inputs), rtol=0, atol=0)


def test_a_model_that_is_not_the_masked_one_is_never_given_back(
    net: nn.Module, inputs: Tensor, snapshot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = sec.Plan.apply

    def wrong(plan: sec.Plan, model: nn.Module | None = None, **how: Any) -> nn.Module:
        made = right(plan, model, **how)
        with torch.no_grad():
            next(made.parameters()).mul_(1.1)
        return made

    monkeypatch.setattr(sec.Plan, "apply", wrong)
    before = snapshot(net)
    with pytest.raises(sec.errors.SurgeryError, match=r"NOT EQUAL.*stem"):
        sec.prune(net, inputs, amount=0.4, inplace=True, **UNTIMED)
    assert snapshot(net) == before
    assert sec.prune(net, inputs, amount=0.4, verify=False, **UNTIMED).verification is None


def test_what_cannot_be_proven_is_said_aloud() -> None:
    with torch.device("meta"):
        net, x = hidden(), torch.zeros(2, 8)
    with pytest.warns(UserWarning, match="not proven.*meta"):
        result = sec.prune(net, x, amount=0.5, criterion="random", **QUIET)
    assert result.model[0].out_features == 8
    assert result.report.proof is not None and not result.report.proof.proven
    assert "Not proven" in sec.report.verdict(result.report).proof


def test_a_saved_result_comes_back_bit_by_bit(
    net: nn.Module, inputs: Tensor, tmp_path: Any, accuracy: Any
) -> None:
    result = sec.prune(net, inputs, amount=0.4, evaluate=accuracy, **QUIET)
    result = result.described(title="Digits", model="tests:Residual", command="pytest")
    folder = result.save(tmp_path / "out")
    names = {"README.md", "metrics.json", "model.safetensors", "plan.json", "report.html"}
    assert {p.name for p in folder.iterdir()} == names
    loaded = sec.load(copy.deepcopy(net), folder)
    assert_close(loaded(inputs), result.model(inputs), rtol=0, atol=0)
    assert sec.report.read(folder / "metrics.json") == result.report
    assert "Digits" in (folder / "report.html").read_text()
    result.save(folder)  # once more over itself
    assert {p.name for p in folder.iterdir()} == names


@pytest.mark.parametrize("score", [float("inf"), float("-inf"), float("nan")])
def test_a_score_that_is_not_finite_is_null_in_json_and_said_in_words(
    net: nn.Module, inputs: Tensor, tmp_path: Any, score: float
) -> None:
    perplexity = sec.report.Metric("perplexity", percent=False, higher_is_better=False)
    dense = iter([7.5, score])
    result = sec.prune(
        net, inputs, amount=0.4, evaluate=lambda _: next(dense), metric=perplexity, **QUIET
    )
    folder = result.save(tmp_path / "out")
    stored = json.loads((folder / "metrics.json").read_text())
    assert (stored["before"]["accuracy"], stored["after"]["accuracy"]) == (7.5, None)
    assert sec.report.read(folder / "metrics.json") == result.report
    said = f"The perplexity of the pruned model is {score}, which is no finite number."
    assert said in sec.report.verdict(result.report).warnings
    for text in (str(result), *((folder / n).read_text() for n in ("README.md", "report.html"))):
        assert f"perplexity {score} (pruned)" in text
    assert [entry["score"] for entry in result.history] == [pytest.approx(score, nan_ok=True)]


def test_a_folder_is_written_as_a_whole_or_not_at_all(
    net: nn.Module, inputs: Tensor, tmp_path: Any
) -> None:
    result = sec.prune(net, inputs, amount=0.4, **QUIET)
    with pytest.raises(TypeError):  # JSON has no sets
        result.described(settings={"tags": {1, 2}}).save(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "metrics.json").write_text("my own")
    with pytest.raises(sec.errors.StoreError, match=r"metrics.json was not written by"):
        result.save(tmp_path / "mine")
    assert [p.read_text() for p in (tmp_path / "mine").iterdir()] == ["my own"]


def test_a_result_says_what_it_is(net: nn.Module, inputs: Tensor, accuracy: Any) -> None:
    result = sec.prune(net, inputs, amount=0.4, evaluate=accuracy, **QUIET)
    assert len(repr(result)) < 200 and "fewer MACs" in repr(result)
    assert "Proven" in str(result) and "layers" not in str(result)[:100]
