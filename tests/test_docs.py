"""The code of the how-to pages runs, each page from top to bottom."""

import re
from pathlib import Path
from typing import Any

import pytest

import secateur as sec

DOCS = Path(__file__).parents[1] / "docs"


def run(name: str) -> dict[str, Any]:
    page = DOCS / name
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S)
    assert len(blocks) >= 3
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, str(page), "exec"), names)
    return names


def test_training() -> None:
    names = run("training.md")
    assert round(names["result"].masks.sparsity, 2) == 0.9
    for n, mask in names["masks"].items():
        for net in (names["net"], names["average"].module):
            assert not bool(net.get_parameter(n)[~mask].any())
    assert sec.attach(names["net"], names["optimizer"], names["masks"]).masks == names["masks"]


def test_pruning() -> None:
    result = run("pruning.md")["result"]
    assert result.verification.ok
    assert len(result.report.history) == 2


def test_zeros(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = run("zeros.md")
    assert names["half"].report.sparsity == pytest.approx(0.5)
    assert names["shorter"].model.config.num_hidden_layers == 1
    assert names["narrower"].verification.ok
    assert dict(names["gated"].counted())
    assert (tmp_path / "half" / "masks.safetensors").exists()
