"""``secateur prune``: the run directory, the same run again, and going on after a kill."""

import json
import os
import subprocess
import sys
from textwrap import dedent

import pytest
import torch
from safetensors.torch import load_file

import secateur as sec
from secateur.cli import code
from secateur.report import read

FILES = {"README.md", "config.yaml", "metrics.json", "model.safetensors", "plan.json"}


def options(net, out, *more):
    quick = ["--data", net, "--repeats", "2", "--warmup", "1", "--threads", "1"]
    return ["prune", net, "--out", out, *quick, *more]


def weights(folder):
    return load_file(folder / "model.safetensors")


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_a_run_directory_holds_everything_and_loads_back(secateur, net, tmp_path):
    out = tmp_path / "out"
    more = ["--amount", "0.5", "--recovery", "fine-tune:epochs=2,lr=0.1", "--seed", "3"]
    ran = secateur(*options(net, out, *more, "--json"))
    assert ran.code == 0, ran.err
    assert "imported" in ran.err  # the user's own print
    files = {p.name for p in out.iterdir()}
    assert FILES <= files <= FILES | {"report.html"}
    answer = ran.json
    assert set(answer["files"]) == files
    record = read(out / "metrics.json")
    assert answer["report"] == json.loads(json.dumps(record.to_dict()))
    assert record.seed == 3
    assert record.command.startswith(f"secateur prune {net} --out {out}")
    assert record.data.hash.startswith("sha256:")
    assert record.environment["torch"] == torch.__version__
    assert record.environment["secateur"] == sec.__version__
    assert record.settings["recovery"] == "fine-tune(epochs=2, lr=0.1)"
    assert record.proof.proven
    assert {layer.name: layer.after for layer in record.layers} == {"0": 8, "2": 4}
    model = sec.load(code.find(str(net), "build"), out)
    assert same(model.state_dict(), weights(out))
    # the accuracy in the record is that of the saved model
    _, test = code.find(f"{net}:loaders", "")(seed=3)
    right = sum(int((model(x).argmax(1) == y).sum()) for x, y in test)
    assert record.after.accuracy == right / 20


def test_a_method_settles_what_no_flag_says(secateur, net, tmp_path):
    out = tmp_path / "out"
    ran = secateur(*options(net, out, "--method", "flap:scope=uniform", "--amount", "0.5"))
    assert ran.code == 0, ran.err
    settings = read(out / "metrics.json").settings
    assert settings["method"] == "flap(scope=uniform)"
    assert settings["criterion"] == "fluctuation"
    assert settings["recovery"] == "bias"


def test_the_resolved_configuration_reproduces_the_run(secateur, net, tmp_path, monkeypatch):
    out, again = tmp_path / "out", tmp_path / "again"
    monkeypatch.chdir(tmp_path)
    more = ["--keep", "params=0.5", "--criterion", "taylor", "--recovery", "fine-tune:epochs=1"]
    assert secateur(*options("net.py", "out", *more)).code == 0
    monkeypatch.chdir("/")
    ran = secateur("prune", "--config", out / "config.yaml", "--out", again)
    assert ran.code == 0, ran.err
    assert same(weights(out), weights(again))
    first, second = read(out / "metrics.json"), read(again / "metrics.json")
    assert first.data == second.data
    assert first.layers == second.layers
    other = ["prune", "--config", out / "config.yaml", "--out", again, "--seed", 1]
    refused = secateur(*other)
    assert refused.code == 1 and "seed: 0 there, 1 here" in refused.err
    assert same(weights(out), weights(again))
    assert secateur(*other, "--restart").code == 0
    assert not same(weights(out), weights(again))
    assert read(again / "metrics.json").seed == 1


def test_inputs_that_a_run_was_given_serve_for_what_it_left(secateur, tmp_path):
    """The file that builds the network does not say what it takes."""
    file = tmp_path / "bare.py"
    file.write_text(
        "from torch import nn\ndef build():\n"
        "    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))\n"
    )
    out = tmp_path / "out"
    quick = ["--input", "2x6", "--amount", "0.5", "--data", "none", "--repeats", "0"]
    assert secateur("prune", file, *quick, "--out", out).code == 0
    for command in (["load-check", out, "--model", file], ["trace", out, "--original", file]):
        ran = secateur(*command)
        assert ran.code == 0, ran.err


def test_an_amount_on_the_command_line_takes_the_place_of_the_files_budget(secateur, net, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(f"model: {net}\nkeep: {{params: 0.5}}\n")
    show = ["prune", "--config", file, "--print-config"]
    shown = secateur(*show, "--amount", "0.25", "--json").json
    assert (shown["amount"], shown["keep"]) == (0.25, {})
    shown = secateur(
        "prune", "--config", file, "--keep", "macs=0.4", "--print-config", "--json"
    ).json
    assert (shown["amount"], shown["keep"]) == (None, {"macs": 0.4})
    text = secateur(*show).out
    (tmp_path / "full.yaml").write_text(text)
    again = secateur("prune", "--config", tmp_path / "full.yaml", "--print-config")
    assert again.out == text


def test_a_dry_run_shows_what_would_go_and_writes_nothing(secateur, net, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.rglob("*"))
    ran = secateur("prune", net, "--amount", "0.5", "--dry-run", "--json")
    assert ran.code == 0, ran.err
    answer = ran.json
    assert answer["removed"] == {"0": 8, "2": 4}
    assert answer["report"]["proof"]["error"] < 1e-5
    small = 6 * 8 + 8 + 8 * 4 + 4 + 4 * 3 + 3
    assert answer["report"]["after"]["parameters"] == small
    assert answer["report"]["after"]["macs"] == 2 * (6 * 8 + 8 * 4 + 4 * 3)
    left = {p for p in set(tmp_path.rglob("*")) - before if "__pycache__" not in str(p)}
    assert not left
    text = secateur("prune", net, "--amount", "0.5", "--dry-run")
    assert "nothing was written" in text.out


def test_the_default_folder_is_named_after_model_and_settings(secateur, net, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran = secateur(*options(net, "")[:2], "--amount", "0.5", "--repeats", "0", "--json")
    assert ran.code == 0, ran.err
    (folder,) = (tmp_path / "runs").iterdir()
    assert ran.json["out"] == f"runs/{folder.name}"
    assert folder.name.startswith("net-")
    zoo = secateur("prune", "zoo:lenet300", "--amount", "0.5", "--repeats", "0", "--data", "none",
                   "--json")  # fmt: skip
    assert zoo.json["out"].startswith("runs/zoo-lenet300-")


def test_a_loss_and_a_metric_of_ones_own_are_used(secateur, net, tmp_path):
    own = ["--loss", f"{net}:zero_loss", "--evaluate", f"{net}:smallness"]
    named = ["--metric", "name=smallness", "--metric", "higher_is_better=false"]
    ran = secateur(
        *options(net, tmp_path / "out", "--amount", "0.5", *own, *named, "--json"),
        *["--recovery", "fine-tune:epochs=3", "--sensitivity", "0.5"],
    )
    assert ran.code == 0, ran.err
    record = read(tmp_path / "out" / "metrics.json")
    assert record.metric.name == "smallness"
    assert not record.metric.higher_is_better
    assert not record.metric.percent
    # a loss that is always 0 changes nothing
    assert record.after.accuracy == record.unhealed.accuracy
    found = weights(tmp_path / "out")
    assert record.after.accuracy == pytest.approx(
        -sum(float(t.abs().sum()) for t in found.values())
    )
    assert {c.name for c in record.sensitivity} == {"0", "2"}


def test_a_run_whose_score_is_infinite_is_finished_and_says_so(secateur, net, tmp_path):
    net.write_text(net.read_text() + "\ndef unbounded(model):\n    return float('inf')\n")
    more = ["--evaluate", f"{net}:unbounded", "--sensitivity", "0.5", "--json"]
    ran = secateur(*options(net, tmp_path / "out", "--amount", "0.5", *more))
    assert ran.code == 0, ran.err
    assert ran.json["report"]["after"]["accuracy"] is None
    record = read(tmp_path / "out" / "metrics.json")
    assert (record.after.not_finite, record.sensitivity) == ("inf", ())
    assert "sensitivity was not measured: evaluate gave inf" in record.notes[-1]
    assert not (tmp_path / "out" / "unfinished").exists()


def test_a_folder_of_somebody_else_is_refused_before_anything_is_done(secateur, net, tmp_path):
    out = tmp_path / "thesis"
    out.mkdir()
    (out / "chapter1.txt").write_text("years of work")
    (out / "metrics.json").write_text("{}")
    ran = secateur(*options(net, out, "--amount", "0.5"))
    assert ran.code == 1
    assert "holds no run of secateur" in ran.err
    assert {p.name: p.read_text() for p in out.iterdir()} == {
        "chapter1.txt": "years of work",
        "metrics.json": "{}",
    }
    file = secateur(*options(net, out / "chapter1.txt", "--amount", "0.5"))
    assert file.code == 1
    assert "is a file" in file.err


def test_a_failed_run_leaves_nothing_and_an_earlier_run_stays(secateur, net, tmp_path):
    out = tmp_path / "deep" / "out"
    ran = secateur(*options(net, out, "--keep", "params=0.0001"))
    assert ran.code == 1
    assert ran.err.count("error: ") == 1
    assert not out.exists()
    assert secateur(*options(net, out, "--amount", "0.5")).code == 0
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    for restart in ([], ["--restart"]):
        assert secateur(*options(net, out, "--keep", "params=0.0001", *restart)).code == 1
        assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    assert secateur(*options(net, out, "--amount", "0.25", "--restart")).code == 0
    assert {layer.after for layer in read(out / "metrics.json").layers} == {12, 6}


def test_a_failed_run_takes_the_folder_of_runs_along_if_it_is_empty(
    secateur, net, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    failing = [*options(net, "")[:2], "--keep", "params=0.0001", "--data", "none"]
    assert secateur(*failing).code == 1
    assert not (tmp_path / "runs").exists()
    (tmp_path / "runs" / "earlier").mkdir(parents=True)
    assert secateur(*failing).code == 1
    assert [p.name for p in (tmp_path / "runs").iterdir()] == ["earlier"]


def test_other_commands_say_how_to_go_on_with_what_was_broken_off(secateur, tmp_path):
    out = tmp_path / "out"
    (out / "unfinished").mkdir(parents=True)
    for command in ("report", "load-check", "measure"):
        ran = secateur(command, out)
        assert ran.code == 1
        assert ran.err.count("error: ") == 1
        assert f"broken off: secateur prune --resume --out {out}" in ran.err


@pytest.mark.parametrize("command", ["load-check", "report"])
def test_a_folder_that_is_missing_is_called_missing(secateur, tmp_path, command):
    ran = secateur(command, tmp_path / "nowhere")
    assert ran.code == 1
    assert "nowhere does not exist" in ran.err


def test_a_finished_run_is_not_done_again_on_resume(secateur, net, tmp_path):
    out = tmp_path / "out"
    given = options(net, out, "--amount", "0.5")
    first = secateur(*given, "--resume", "--json")  # nothing to go on with: it begins
    assert first.code == 0
    before = {p.name: p.stat().st_mtime_ns for p in out.iterdir()}
    again = secateur(*given, "--resume", "--json")
    assert again.json == first.json
    assert "nothing to do" in again.err
    assert secateur("prune", "--resume", "--out", out, "--json").json == first.json
    assert {p.name: p.stat().st_mtime_ns for p in out.iterdir()} == before
    other = secateur(*given, "--seed", "9", "--resume")
    assert other.code == 1
    assert "seed: 0 there, 9 here" in other.err


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--criterion", "tailor"], "did you mean 'taylor'"),
        (["--criterion", "lp:q=3"], "'q'"),
        (["--scope", "gobal"], "did you mean 'global'"),
        (["--schedule", "cubik"], "did you mean 'cubic'"),
        (["--recovery", "finetune"], "did you mean 'fine-tune'"),
        (["--recovery", "fine-tune:epoch=1"], "did you mean 'epochs'"),
        (["--recovery", "fine-tune:epochs=three"], "epochs should be a whole number, not 'three'"),
        (["--recovery", "distil:base.lr=fast"], "base: lr should be a number or none"),
        (["--keep", "flops=0.5"], "flops"),
        (["--ignore", "classifier.*"], "classifier"),
        (["--metric", "nam=x"], "nam"),
        (["--amount", "1.5"], "amount"),
        (["--evaluate", "net.py:not_a_model"], "not a function"),
        (["--config", "none.yaml"], "none.yaml cannot be read"),
        (["--data", "none", "--criterion", "taylor"], "data"),
        (["--data", "none", "--sensitivity", "0.5"], "sensitivity needs test data"),
        (["--input", "2x7"], "7"),
    ],
)
def test_a_mistake_is_one_clear_line_and_nothing_is_written(
    secateur, net, tmp_path, monkeypatch, more, words
):
    monkeypatch.chdir(tmp_path)
    asked = [] if {"--keep", "--amount"} & set(more) else ["--amount", "0.5"]
    ran = secateur(*options(net, tmp_path / "out", *asked, *more))
    assert ran.code == 1
    lines = [line for line in ran.err.splitlines() if line != "imported"]
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert words in lines[0]
    assert "unexpected" not in lines[0]
    assert not (tmp_path / "out").exists()


KILLED = """
    import os
    import signal
    import torch
    from net import build, example_inputs

    calls = 0

    class Data(torch.utils.data.Dataset):
        def __len__(self):
            return 40

        def __getitem__(self, i):
            global calls
            calls += 1
            if calls == int(os.environ.get("KILL_AT", -1)):
                os.kill(os.getpid(), signal.SIGKILL)
            x = torch.randn(6, generator=torch.Generator().manual_seed(i))
            return x, x[:3].argmax()

    def loaders(seed):
        g = torch.Generator().manual_seed(seed)
        return torch.utils.data.DataLoader(Data(), 5, shuffle=True, generator=g)
"""


def test_a_killed_run_goes_on_and_ends_as_if_it_had_not_been_killed(secateur, net, tmp_path):
    file = tmp_path / "killed.py"
    file.write_text(dedent(KILLED))
    given = [
        *["prune", f"{file}:build", "--data", f"{file}:loaders", "--input", "2x6"],
        *["--amount", "0.5", "--schedule", "linear", "--steps", "2", "--repeats", "0"],
        *["--recovery", "fine-tune:epochs=3,every=2,lr=0.1", "--recovery", "bn", "--threads", "1"],
    ]
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert secateur(*given, "--out", whole).code == 0
    # 3 epochs of 40 samples a step, and some to look at the data: 200 is in the second step
    command = [sys.executable, "-m", "secateur", *given, "--out", str(out)]
    killed = subprocess.run(command, env={**os.environ, "KILL_AT": "200"}, capture_output=True)
    assert killed.returncode == -9
    found = sorted(str(p.relative_to(out / "unfinished")) for p in out.rglob("*.safetensors"))
    assert found == [f"0-fine-tune/{k}-0/recovery.safetensors" for k in (1, 2)]
    refused = secateur(*given, "--out", out)
    assert refused.code == 1
    assert "--resume" in refused.err
    changed = secateur(*given, "--out", out, "--seed", "1", "--resume")
    assert changed.code == 1
    assert "seed: 0 there, 1 here" in changed.err
    calls = code.module_of(str(file)).calls
    assert secateur("prune", "--resume", "--out", out).code == 0
    assert code.module_of(str(file)).calls - calls < 200  # it did not begin again
    assert same(weights(whole), weights(out))
    assert read(whole / "metrics.json").history == read(out / "metrics.json").history
    assert not (out / "unfinished").exists()


def test_what_was_broken_off_can_be_forgotten(secateur, net, tmp_path):
    out = tmp_path / "out"
    (out / "unfinished").mkdir(parents=True)
    (out / "unfinished" / "config.yaml").write_text("model: zoo:resnet8\n")
    assert secateur(*options(net, out, "--amount", "0.5")).code == 1
    assert secateur(*options(net, out, "--amount", "0.5", "--restart")).code == 0
    assert {p.name for p in out.iterdir()} >= FILES
    assert not (out / "unfinished").exists()
    # what a kill leaves in the first moments is in nobody's way
    new = tmp_path / "new"
    (new / "unfinished").mkdir(parents=True)
    (new / "unfinished" / ".config.yaml.12ab.tmp").touch()
    assert secateur(*options(net, new, "--amount", "0.5")).code == 0


def test_an_interrupted_run_says_how_to_go_on(secateur, net, tmp_path):
    file = tmp_path / "interrupted.py"
    file.write_text(
        dedent(KILLED).replace("os.kill(os.getpid(), signal.SIGKILL)", "raise KeyboardInterrupt")
    )
    os.environ["KILL_AT"] = "100"
    given = ["prune", f"{file}:build", "--data", f"{file}:loaders", "--input", "2x6", "--amount",
             "0.5", "--repeats", "0", "--out", tmp_path / "out", "--recovery",
             "fine-tune:epochs=9,every=1"]  # fmt: skip
    try:
        ran = secateur(*given)
    finally:
        del os.environ["KILL_AT"]
    assert ran.code == 130
    assert f"`secateur prune --resume --out {tmp_path / 'out'}` goes on" in ran.err
    assert secateur("prune", "--resume", "--out", tmp_path / "out").code == 0


@pytest.mark.parametrize("how", ["--dry-run", "--print-config"])
@pytest.mark.parametrize(
    ("recovery", "words"),
    [
        ("[bn, {finetune: {steps: 2}}]", "did you mean 'fine-tune'"),
        ("{fine-tune: {leraning_rate: 0.1}}", "leraning_rate"),
        ("{fine-tune: {steps: two}}", "steps should be a whole number"),
    ],
)
def test_a_misspelt_recovery_is_refused_before_the_run(
    secateur, net, tmp_path, how, recovery, words
):
    path = tmp_path / "run.yaml"
    path.write_text(f"amount: 0.5\nrecovery: {recovery}\n")
    ran = secateur("prune", net, "--config", path, how)
    assert ran.code == 1
    assert words in ran.err


def test_what_is_missing_is_asked_for_in_the_words_of_flags(secateur, net):
    ran = secateur("prune", net)
    assert ran.code == 1 and "--amount 0.5" in ran.err and "--keep macs=0.5" in ran.err
    ran = secateur("prune", net, "--amount", "0.5", "--weights", "missing.safetensors")
    assert ran.code == 1 and "missing.safetensors: there is no such file" in ran.err
