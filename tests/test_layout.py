"""The shape of the source: what may import what, how long files are, what is never used."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "secateur"
FILES = sorted(SOURCE.rglob("*.py"))

# From the bottom up; a part imports only from parts below its own line.
LAYERS = (
    ("errors",),
    ("names", "files", "typed"),
    ("graph", "measure", "schedule", "zoo", "environment"),
    ("engine", "scope"),
    ("criteria", "recovery"),
    ("granularity",),
    ("plan",),
    ("methods", "report"),
    ("training",),
    ("result", "settled"),
    ("prune", "sparsify", "gate", "permute"),
    ("analyse", "integrations", "lottery"),
    ("streaming",),
    ("public",),
    ("__init__",),
    ("cli",),
    ("__main__",),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
EXTRAS = (
    "jinja2", "matplotlib", "sklearn", "scipy", "torchvision", "timm", "transformers",
    "accelerate", "lightning", "torch_geometric", "ultralytics", "onnx", "ray", "pandas",
)  # fmt: skip


def name_of(path: Path) -> str:
    return path.relative_to(SOURCE).as_posix()


def part_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported_parts(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """The parts of secateur that a file imports when it runs, and where."""
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = [ast.Pass()]
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "secateur":
                    yield [*alias.name.split("."), "__init__"][1], node.lineno
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            first, *rest = node.module.split(".")
            if first == "secateur":
                for part in [rest[0]] if rest else [a.name for a in node.names]:
                    yield part if part in LEVEL or rest else "__init__", node.lineno


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_point_downwards(path: Path) -> None:
    part = part_of(path)
    assert part in LEVEL, f"{name_of(path)} has no place in LAYERS"
    for other, line in imported_parts(ast.parse(path.read_text(encoding="utf-8"))):
        if other == part:
            continue
        if other == "__init__" and part == "environment":
            continue  # the version
        assert LEVEL[other] < LEVEL[part], (
            f"{name_of(path)}:{line} imports {other}, which is not below {part}"
        )


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_are_short(path: Path) -> None:
    member = part_of(path) in ("criteria", "methods") and path.stem not in ("__init__", "registry")
    limit = 150 if member else 400
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= limit, f"{name_of(path)} has {lines} lines, the limit is {limit}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_what_is_never_used(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree) or not tree.body, f"{name_of(path)} says not what it is for"
    for node in ast.walk(tree):
        where = f"{name_of(path)}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("print", "torch.load", "torch.save", "eval"), f"{where}: {called}"
        if isinstance(node, ast.Import):
            assert not {a.name for a in node.names} & {"pickle", "dill", "cloudpickle"}, where
        if isinstance(node, ast.ImportFrom):
            assert node.module not in ("pickle", "dill", "cloudpickle"), where
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"{where}: a bare except"


BLOCKED = f"""
import sys
from importlib.machinery import PathFinder

class Without(PathFinder):  # as if the extras were not installed
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in {EXTRAS!r} else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Without
"""

CORE = """
import tempfile, torch, secateur as sec
from torch import nn
net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
x = torch.randn(4, 8)
data = [(x, torch.tensor([0, 1, 0, 1]))]
result = sec.prune(
    net, x, amount=0.5, criterion="taylor", data=data, recovery="fine-tune",
    evaluate=lambda m: 0.5, measure={"repeats": 2}, progress=False,
)
folder = result.save(tempfile.mkdtemp() + "/out")
assert sec.load(net, folder)[0].out_features == 8
assert not (folder / "report.html").exists()
assert str(result) and sec.sensitivity(net, x, lambda m: 0.5)
try:
    result.html(folder / "report.html")
except sec.errors.MissingExtraError as error:
    assert "secateur[report]" in str(error)
else:
    raise SystemExit("a page without jinja2?")
"""


def python(code: str, *options: str) -> str:
    done = subprocess.run(
        [sys.executable, *options, "-c", code], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_core_needs_no_extra() -> None:
    python(BLOCKED + CORE)


@pytest.mark.parametrize("arguments", [["--help"], ["methods"]])
def test_the_command_line_needs_no_extra(arguments: list[str]) -> None:
    code = f"from secateur.cli import main\nsys.exit(main({arguments!r}))"
    assert "prune" in python(BLOCKED + code) or arguments != ["--help"]


def test_importing_leaves_the_extras_alone() -> None:
    """An extra that is installed is loaded when it is used, not when secateur is imported."""
    seen = python("import secateur, sys; secateur.prune; print(*sorted(sys.modules))").split()
    assert not set(seen) & {"torchvision", "timm", "transformers", "jinja2", "matplotlib"}


def test_every_public_name_is_documented_and_there() -> None:
    import secateur

    for name in secateur.__all__:
        found = getattr(secateur, name)
        assert (found.__doc__ or "").strip(), f"secateur.{name} has no docstring"
        assert name in dir(secateur)
