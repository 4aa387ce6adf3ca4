"""The other commands, the examples of every --help, and the commands of docs/cli.md."""

import doctest
import importlib
import json
import pkgutil
import re
import shlex
from pathlib import Path

import pytest
import torch

import secateur as sec
from secateur import cli
from secateur.cli import commands, main
from secateur.cli.main import command_modules
from secateur.report import read

DOCS = Path(__file__).parents[2] / "docs" / "cli.md"


@pytest.mark.parametrize("name", [m.name for m in pkgutil.iter_modules(cli.__path__)])
def test_the_examples_in_docstrings_hold(name):
    assert doctest.testmod(importlib.import_module(f"secateur.cli.{name}")).failed == 0


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder in which the examples of ``prune --help`` have run."""
    folder = tmp_path_factory.mktemp("workplace")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        torch.set_num_threads(1)
        for line in commands.prune.EXAMPLES:
            assert main([*shlex.split(line)[1:], "-q"]) == 0, line
    return folder


@pytest.fixture
def here(workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    return workplace


@pytest.mark.parametrize(
    "line",
    [line for m in command_modules() if not m.__name__.endswith("prune") for line in m.EXAMPLES],
)
def test_the_examples_of_help_run(secateur, here, line):
    ran = secateur(*shlex.split(line)[1:])
    assert ran.code == 0, ran.err
    assert ran.out


def test_the_commands_of_the_documentation_run(secateur, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = DOCS.read_text(encoding="utf-8")
    lines = [line for block in re.findall(r"```sh\n(.*?)```", text, re.S)
             for line in block.splitlines()]  # fmt: skip
    assert len(lines) > 8
    for line in lines:
        ran = secateur(*shlex.split(line)[1:], "-q")
        assert ran.code == 0, (line, ran.err)
    assert (tmp_path / "both.html").is_file()
    (block,) = re.findall(r"```yaml\n(.*?)```", text, re.S)
    (tmp_path / "run.yaml").write_text(block)
    shown = secateur("prune", "--config", "run.yaml", "--print-config", "--json").json
    assert shown["recovery"] == ["bn", {"fine-tune": {"steps": 20, "lr": 0.01}}]
    assert set(re.findall(r"^\| `([a-z-]+)` \|", text, re.M)) == {
        m.__name__.rpartition(".")[2].replace("_", "-") for m in command_modules()
    }


def test_trace_says_what_the_graph_says(secateur, tmp_path):
    graph = sec.trace(sec.zoo.load("resnet8"), sec.zoo.example_inputs("resnet8"))
    assert secateur("trace", "zoo:resnet8").out == f"{graph}\n"
    name = next(iter(graph.free))
    explained = secateur("trace", "zoo:resnet8", "--explain", name)
    assert explained.out == graph.explain(name).rstrip("\n") + "\n"
    answer = secateur("trace", "zoo:resnet8", "--json", "--draw", tmp_path / "g.svg").json
    assert answer["prunable_share"] == graph.prunable_share
    assert {c["name"]: c["size"] for c in answer["classes"] if not c["locked"]} == {
        c.name: c.size for c in graph.free.values()
    }
    first = next(c for c in answer["classes"] if c["name"] == name)
    assert {(m["tensor"], m["axis"]) for m in first["members"]} == {
        (m.tensor, m.axis) for m in graph.free[name].members
    }
    assert (tmp_path / "g.svg").read_text().startswith("<svg")
    wrong = secateur("trace", "zoo:resnet8", "--draw", tmp_path / "g.png")
    assert wrong.code == 1


def test_measure_counts_what_can_be_counted_by_hand(secateur, net):
    answer = secateur("measure", net, "--repeats", "3", "--json").json
    assert answer["parameters"] == 6 * 16 + 16 + 16 * 8 + 8 + 8 * 3 + 3
    assert answer["macs"] == 2 * (6 * 16 + 16 * 8 + 8 * 3)
    assert answer["latency"]["repeats"] == 3
    one = secateur("measure", net, "--input", "1x6", "--repeats", "0", "--json").json
    assert one["macs"] == 6 * 16 + 16 * 8 + 8 * 3
    assert one["latency"] is None


def test_measure_puts_a_saved_folder_beside_its_original(secateur, here):
    answer = secateur("measure", "out", "--against", "zoo:resnet8", "--json").json
    record = read(here / "out" / "metrics.json")
    assert answer["parameters"] == record.after.parameters
    assert answer["against"]["dense"]["parameters"] == record.before.parameters
    assert answer["against"]["macs"] == pytest.approx(record.before.macs / record.after.macs)
    assert answer["against"]["speedup"]["ratio"] > 0


def test_a_saved_folder_can_be_pruned_again(secateur, here, tmp_path):
    ran = secateur("prune", "out", "--amount", "0.5", "--repeats", "0", "--out", tmp_path / "twice")
    assert ran.code == 0, ran.err
    twice = read(tmp_path / "twice" / "metrics.json")
    assert twice.before.parameters == read(here / "out" / "metrics.json").after.parameters
    checked = secateur("load-check", tmp_path / "twice", "--json").json
    assert checked["parameters"] == twice.after.parameters


def test_sensitivity_masks_what_it_says(secateur, net):
    answer = secateur("sensitivity", net, "--data", net, "--amounts", "0.5", "--json").json
    curves = {c["name"]: dict(map(tuple, c["points"])) for c in answer["curves"]}
    assert curves.keys() == {"0", "2"}
    assert all(set(points) == {0.0, 0.5} for points in curves.values())
    nothing = secateur("sensitivity", net)
    assert nothing.code == 1
    assert "--data" in nothing.err
    wrong = secateur("sensitivity", net, "--data", net, "--amounts", "half")
    assert wrong.code == 1
    assert "fractions" in wrong.err
    wrong = secateur("sensitivity", "zoo:none", "--amounts", "50")  # before any model is looked for
    assert "--amounts 50: write fractions between 0 and 1" in wrong.err


def test_sensitivity_of_the_metric_is_that_of_masking_by_hand(secateur, tmp_path):
    """A layer whose first half of the units is zero loses nothing with that half."""
    file = tmp_path / "halves.py"
    file.write_text(
        "import torch\nfrom torch import nn\n"
        "def build():\n"
        "    torch.manual_seed(0)\n"
        "    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))\n"
        "    net[0].weight.data[:4] *= 1e-3\n"
        "    net[0].bias.data.zero_()\n"
        "    net[2].weight.data[:, :4] = 0\n"
        "    return net\n"
        "def example_inputs(): return torch.ones(2, 4)\n"
        "def total(model): return float(model(torch.eye(4)).abs().sum())\n"
    )
    answer = secateur("sensitivity", file, "--evaluate", f"{file}:total", "--amounts", "0.5,0.75",
                      "--json").json  # fmt: skip
    points = dict(map(tuple, answer["curves"][0]["points"]))
    assert points[0.5] == pytest.approx(points[0.0])
    assert points[0.75] != pytest.approx(points[0.0])


def test_report_shows_the_record_and_writes_page_and_card(secateur, here, tmp_path):
    answer = secateur("report", "out", "--json").json
    assert answer["runs"]["out"] == json.loads((here / "out" / "metrics.json").read_text())
    card = tmp_path / "card.md"
    assert secateur("report", "out/metrics.json", "--card", card).code == 0
    assert card.read_text() == (here / "out" / "README.md").read_text()
    both = secateur("report", "out", "unhealed", "--html", tmp_path / "page.html")
    assert "unhealed" in both.out
    assert (tmp_path / "page.html").read_text().count("unhealed") > 0
    missing = secateur("report", tmp_path)
    assert missing.code == 1
    assert "finished run" in missing.err


def test_methods_lists_every_member_of_every_registry(secateur):
    answer = secateur("methods", "--json").json
    listed = {kind: [row["name"] for row in rows] for kind, rows in answer.items()}
    assert sorted(listed.pop("method")) == sec.methods()
    assert listed == {
        "criterion": sec.criteria.names(),
        "scope": sec.scope.registry.names(),
        "schedule": sec.schedule.registry.names(),
        "recovery": sec.recovery.names(),
    }
    assert all(row["about"] for rows in answer.values() for row in rows)
    text = secateur("methods").out
    assert all(name in text for names in listed.values() for name in names)
    lp = next(row for row in answer["criterion"] if row["name"] == "lp")
    assert lp["options"] == ["p"]
    assert secateur("methods", "scope", "--json").json == {"scope": answer["scope"]}
    for stage in ("before", "during", "after", "runtime"):
        rows = secateur("methods", stage, "--json").json["method"]
        assert [row["name"] for row in rows] == sec.methods(stage)


def test_load_check_passes_a_whole_folder_and_names_the_damage(secateur, here, tmp_path):
    ran = secateur("load-check", "out", "--model", "zoo:resnet8", "--json")
    assert ran.json["ok"]
    assert ran.json["parameters"] == read(here / "out" / "metrics.json").after.parameters
    assert set(ran.json["files"]) == {"plan.json", "model.safetensors"}
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in (here / "out").iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    damaged = bytearray((copy / "model.safetensors").read_bytes())
    damaged[-1] ^= 1
    (copy / "model.safetensors").write_bytes(damaged)
    bad = secateur("load-check", copy)
    assert bad.code == 1
    assert "model.safetensors" in bad.err
    assert secateur("load-check", "out", "--original", "zoo:resnet8").code == 0
    other = secateur("load-check", "out", "--model", "zoo:lenet300")
    assert other.code == 1
    assert other.err.count("\n") == 1


def test_a_folder_cannot_make_its_reader_run_code(secateur, here, tmp_path):
    copy = tmp_path / "hostile"
    copy.mkdir()
    for file in (here / "out").iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    (copy / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    for spec in (f"{copy}/evil.py:build", f"{copy}/evil.py", "evil:build"):
        (copy / "config.yaml").write_text(f"model: {spec}\n")
        for command in (["load-check", copy], ["measure", copy], ["trace", copy]):
            ran = secateur(*command)
            assert ran.code == 1
            assert "Python code" in ran.err
    assert not (tmp_path / "ran").exists()
    (copy / "config.yaml").write_text(f"model: {copy}\n")
    assert "pruned from itself" in secateur("measure", copy).err
    (copy / "config.yaml").unlink()
    ran = secateur("measure", copy)
    assert ran.code == 1
    assert "--original" in ran.err
    assert secateur("measure", copy, "--original", "zoo:resnet8", "--repeats", "0").code == 0
