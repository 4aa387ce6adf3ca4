"""Write the zoo's table into a Markdown page: `python -m secateur.zoo.document docs/zoo.md`."""

import argparse
import os
from pathlib import Path

from secateur.zoo.registry import card, names

START, END = "<!-- table: python -m secateur.zoo.document -->", "<!-- end of table -->"


def table() -> str:
    """Make one row a network from what its card says."""
    rows = [
        "| network | data | parameters | accuracy, embedded test split | accuracy, whole test set "
        "| trained on | epochs | minutes | file |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in names():
        c = card(name)
        full = c["accuracy_full"]
        whole = "the same" if full is None else f"{full:.2%} of {c['test_samples_full']:,}"
        rows.append(
            f"| `{name}` | {c['data']} | {c['parameters']:,} "
            f"| {c['accuracy']:.2%} of {c['test_samples']:,} | {whole} "
            f"| {c['train_samples']:,} | {c['recipe']['epochs']} | {c['seconds'] / 60:.1f} "
            f"| {c['bytes'] / 1e6:.2f} MB |"
        )
    return "\n".join(rows)


def main() -> None:
    """Replace what stands between the page's two marks."""
    parser = argparse.ArgumentParser(prog="python -m secateur.zoo.document", description=__doc__)
    parser.add_argument("page", type=Path)
    page = parser.parse_args().page
    before, rest = page.read_text(encoding="utf-8").split(START, 1)
    after = rest.split(END, 1)[1]
    unfinished = page.with_suffix(".part")
    unfinished.write_text(f"{before}{START}\n{table()}\n{END}{after}", encoding="utf-8")
    os.replace(unfinished, page)


if __name__ == "__main__":
    main()
