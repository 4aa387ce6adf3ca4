"""What the documents say is true: commands run, snippets run, generated parts are up to date."""

import importlib.util
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def run(command: list[str], folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}\n{done.stderr[-3000:]}"
    return done.stdout


def commands() -> list[str]:
    lines = [line for block in blocks(README, "sh") for line in block.splitlines()]
    return [line.partition("#")[0].strip() for line in lines if line.strip()]


def test_the_snippets_run_in_order(tmp_path: Path) -> None:
    code = "\n".join(blocks(README, "python"))
    assert "sec.prune" in code and "sec.load" in code
    out = run([sys.executable, "-c", code], tmp_path)
    assert "Proven" in out and "speed-up" in out
    assert (tmp_path / "report.html").stat().st_size > 10_000
    assert (tmp_path / "out" / "small" / "model.safetensors").exists()


def test_the_commands_run_in_order(tmp_path: Path) -> None:
    ours = [line for line in commands() if line.startswith("secateur ")]
    assert len(ours) >= 5
    for line in ours:
        _, *arguments = shlex.split(line)
        run([sys.executable, "-m", "secateur", *arguments, "-q"], tmp_path)
    assert (tmp_path / "out" / "resnet8" / "report.html").exists()


@pytest.mark.parametrize("line", [c for c in commands() if c.startswith("make ")])
def test_make_knows_its_targets(line: str) -> None:
    run([*shlex.split(line), "--dry-run"], ROOT)


def test_every_command_is_checked_somehow() -> None:
    assert all(line.startswith(("secateur ", "make ")) for line in commands())


def test_the_demonstration_would_run(tmp_path: Path) -> None:
    config = ROOT / "examples" / "demo.yaml"
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert f"secateur prune --config {config.relative_to(ROOT)}" in makefile
    command = [sys.executable, "-m", "secateur", "prune", "--config", str(config), "--dry-run"]
    assert "2.0× fewer MACs" in run(command, tmp_path)
    assert not list(tmp_path.iterdir())


def test_generated_parts_are_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None and spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    assert generate.filled(README) == README, "run: make readme"


def test_the_tree_names_every_file() -> None:
    tree = README.split("<!-- tree", 1)[1].split("<!-- end of tree", 1)[0]
    lines = [line.split() for line in tree.splitlines() if line and not line.startswith("```")]
    named = [words[0] for words in lines if words[0].endswith(".py")]
    files = [p.name for p in (ROOT / "src" / "secateur").rglob("*.py") if p.name != "__init__.py"]
    assert sorted(named) == sorted(files)
    assert all(len(words) > 1 for words in lines if words[0].endswith(".py"))


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_links_lead_somewhere(path: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if "://" not in target:
            assert (path.parent / target).exists(), f"{path.name} links to {target}"


def test_the_example_of_a_criterion_works(tmp_path: Path) -> None:
    (code,) = blocks(CONTRIBUTING, "python")
    (tmp_path / "spread.py").write_text(code, encoding="utf-8")
    use = """
import doctest, torch, spread, secateur as sec
assert doctest.testmod(spread, extraglobs={"torch": torch}).attempted == 1
assert doctest.testmod(spread, extraglobs={"torch": torch}).failed == 0
assert "spread" in sec.criteria.names()
net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
with torch.no_grad():
    net[0].weight.copy_(torch.tensor([[1., 1, 1], [0, 5, 9], [2, 2, 2], [3, 0, 3]]))
plan = sec.plan(sec.trace(net, torch.zeros(2, 3)), amount=0.5, criterion="spread")
print(plan.keep["0"].tolist())
"""
    assert run([sys.executable, "-c", use], tmp_path) == "[False, True, False, True]\n"


def test_the_version_is_the_same_everywhere() -> None:
    import secateur

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert project["version"] == secateur.__version__ == citation["version"]
    assert f"## {secateur.__version__}" in changelog


def test_contributing_is_short() -> None:
    assert len(CONTRIBUTING.splitlines()) <= 45
