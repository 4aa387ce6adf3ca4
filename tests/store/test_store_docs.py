"""The snippets of docs/saving.md run as they are."""

import re
from pathlib import Path

import pytest
import torch

PAGE = Path(__file__).parents[2] / "docs" / "saving.md"


def test_the_snippets_of_the_page_run_and_do_what_they_say(tmp_path, monkeypatch):
    pytest.importorskip("torchvision")
    monkeypatch.chdir(tmp_path)
    names = {}
    for snippet in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S):
        exec(compile(snippet, str(PAGE), "exec"), names)
    x = names["x"]
    small, again, dense, model = (names[n].eval() for n in ("small", "again", "dense", "model"))
    assert torch.equal(again(x), small(x)) and torch.equal(dense(x), model(x))
    assert names["light"].conv1.weight.dtype == torch.bfloat16
    assert not names["plan"].diff(names["stored"])
    twice = names["second"].apply(small)
    assert torch.equal(names["both"].apply(model)(x), twice(x))


def test_every_key_of_a_plan_file_is_on_the_page(folder):
    import json

    keys = json.loads((folder("plain") / "plan.json").read_text())
    page = PAGE.read_text()
    assert [k for k in keys if f"`{k}`" not in page] == []
