"""Write the generated parts of README.md: what is there, the demonstration, the source's tree.

python docs/generate.py            # rewrite
python docs/generate.py --check    # only say whether anything would change
"""

import ast
import inspect
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "secateur"
README = ROOT / "README.md"


def first_sentence(text: str | None) -> str:
    """The first line of a docstring, without its full stop."""
    return (text or "").strip().split("\n", 1)[0].rstrip(".")


def there() -> str:
    """What the registries hold, a row a kind."""
    from secateur import criteria, recovery, schedule, scope, zoo
    from secateur.cli import commands
    from secateur.granularity import registry as granularity
    from secateur.methods import registry as methods
    from secateur.plan.budget import METRICS

    def names(found: list[str]) -> str:
        return ", ".join(f"`{name}`" for name in found)

    def after(*, solving: bool) -> list[str]:
        found = methods.names("after")
        return [n for n in found if (methods.find(n).granularity == "element") == solving]

    modules = (SOURCE / "cli" / "commands").glob("[!_]*.py")
    rows = [
        ("criteria", "which units", names(criteria.names())),
        ("scopes", "how much where", names(scope.names())),
        ("budgets", "how much in all", f"`amount`, or `keep` of {names(list(METRICS))}"),
        *(
            (f"methods {stage} training", "sparsity inside weights", names(methods.names(stage)))
            for stage in ("before", "during")
        ),
        ("methods after training", "sparsity inside weights", names(after(solving=True))),
        ("methods after training", "smaller tensors", names(after(solving=False))),
        ("methods at run time", "less work, by input", names(methods.names("runtime"))),
        ("granularities", "what goes as one", names(granularity.names())),
        ("schedules", "when", names(schedule.names())),
        ("recoveries", "then what", names(recovery.names())),
        ("networks", "trained, to try it on", names(zoo.names())),
        ("commands", f"`{commands.__name__.split('.')[0]} ...`",
         names(sorted(m.stem.replace("_", "-") for m in modules))),
    ]  # fmt: skip
    lines = ["| what | answers | there are |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| {a} | {b} | {c} |" for a, b, c in rows)])


def papers() -> str:
    """The criteria with what they say and where they are from."""
    from secateur import criteria

    lines = ["| criterion | scores a unit by | data | paper |", "|---|---|---|---|"]
    for name in criteria.names():
        found = criteria.find(name)
        module = inspect.getmodule(found.function)
        about = first_sentence(module.__doc__ if module else None).partition(": ")[2]
        data = "needed" if found.needs else ""
        lines.append(f"| `{name}` | {about} | {data} | {found.paper} |")
    return "\n".join(lines)


def tree() -> str:
    """Every source file with the first line of its docstring."""
    lines = ["```"]
    for path in sorted(SOURCE.rglob("*.py"), key=_folders_last):
        inside = path.relative_to(SOURCE)
        tree = ast.parse(path.read_text(encoding="utf-8"))
        about = first_sentence(ast.get_docstring(tree))
        indent = "  " * (len(inside.parts) - 1)
        if path.name == "__init__.py":
            name = f"{'  ' * (len(inside.parts) - 2)}{inside.parent.name or 'secateur'}/"
            lines.append(f"{name:<29} {about}".rstrip())
        else:
            lines.append(f"{indent + path.name:<29} {about}".rstrip())
    return "\n".join([*lines, "```"])


def _folders_last(path: Path) -> tuple[object, ...]:
    """Files of a folder before its folders; __init__ first, as the folder's own line."""
    *folders, name = path.relative_to(SOURCE).parts
    key: list[object] = []
    for folder in folders:
        key += [1, folder]
    return (*key, 0, "" if name == "__init__.py" else name)


def picture() -> str:
    """The report of the demonstration, with the figures of the run that is in the picture."""
    from secateur import report

    record = report.read(ROOT / "docs" / "images" / "report.json")
    said = report.verdict(record).headline
    return f"![The report of make demo: {said}](docs/images/report.png)"


PARTS = {"there": there, "papers": papers, "picture": picture, "tree": tree}


def filled(text: str) -> str:
    """The page with every generated part up to date."""
    for name, make in PARTS.items():
        start, end = f"<!-- {name}: python docs/generate.py -->", f"<!-- end of {name} -->"
        before, rest = text.split(start, 1)
        after = rest.split(end, 1)[1]
        text = f"{before}{start}\n{make()}\n{end}{after}"
    return text


def main(arguments: list[str]) -> int:
    """Rewrite README.md, or with ``--check`` only compare."""
    text = README.read_text(encoding="utf-8")
    made = filled(text)
    if made != text and "--check" in arguments:
        print("README.md is out of date: python docs/generate.py")
        return 1
    if made != text:
        README.write_text(made, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
