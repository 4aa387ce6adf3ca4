"""The code of docs/training.md runs, from top to bottom."""

import re
from pathlib import Path

import secateur as sec

PAGE = Path(__file__).parents[2] / "docs" / "training.md"


def test_the_page_runs_as_it_is_written() -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    assert len(blocks) == 3
    names: dict = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    assert round(names["result"].masks.sparsity, 2) == 0.9
    for n, mask in names["masks"].items():
        for net in (names["net"], names["average"].module):
            assert not bool(net.get_parameter(n)[~mask].any())
    assert sec.attach(names["net"], names["optimizer"], names["masks"]).masks == names["masks"]
