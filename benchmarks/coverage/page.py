"""docs/coverage.md, written from the results."""

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from benchmarks.coverage.cell import passed, statistical_ok
from benchmarks.coverage.oracle import TOLERANCE

TITLES = {
    "operators": "Operator-level networks",
    "recurrent": "Recurrent networks",
    "points": "Point clouds",
    "unet": "U-Nets",
    "geometric": "torch_geometric",
    "ultralytics": "ultralytics",
    "transformers": "transformers (tiny random configurations)",
    "timm": "timm (the smallest model of every module)",
    "torchvision": "torchvision classification",
    "segmentation": "torchvision segmentation",
    "detection": "torchvision detection",
    "video": "torchvision video",
    "optical_flow": "torchvision optical flow",
}

INTRODUCTION = f"""# Coverage

Every model below is built with random weights, traced, and loses a random half of every class that
can be pruned; the smaller model then runs on the same inputs. **No hint of any kind is given**: no
ignored layers, no head counts, no patched forwards.

- *traced*: the share of all parameters that lie along a prunable class.
- *exact*: only classes for which removing equals zeroing. `error` is the relative difference
  (float32, Euclidean norm) between the pruned model and a copy of the dense one in which what went
  is zero, made by a naive check that is independent of the library
  (`benchmarks/coverage/oracle.py`). Proven means error < {TOLERANCE:g} *and* that pruning changed
  the output by at least {10 * TOLERANCE:g}, so the check can fail. Biases, norm weights, layer
  scales and running statistics are randomised first. Where every class lies under a norm there is
  no exact pass, and `verify` of the second one decides.
- *statistical*: with the classes too that a norm or a softmax runs over. The pruned model must run
  and keep its output shapes; `verify` is the library's own proof,
  `neutral` the naive check with the statistics taken out of the norms (not conclusive where a
  softmax runs over a pruned axis).

Times are process CPU seconds with one thread, for the exact pass.
`classes halved` counts the prunable classes that lost half of their units; of the others a plan
offers none that only buffers have (position tables), or they were given back because a forward
could not say the new size, which the plan notes.

The command that makes this page, resuming what is finished
(`benchmarks/coverage/results.jsonl`):

```
python -m benchmarks.coverage
```
"""


def write(path: Path, rows: list[dict[str, Any]], expected: int) -> None:
    """Write the page: totals, causes of failure, one table a set."""
    groups = defaultdict(list)
    for row in rows:
        groups[row["set"]].append(row)
    parts = [INTRODUCTION, measured_at(rows), totals(groups)]
    if len(rows) < expected:
        parts.append(f"{expected - len(rows)} of {expected} models have not been run yet.\n")
    parts.append(exceptions(rows))
    parts += [table(name, group) for name, group in groups.items()]
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text("\n".join(parts))
    temporary.replace(path)


def measured_at(rows: list[dict[str, Any]]) -> str:
    """At which commits the rows were measured."""
    commits = Counter(row["commit"] for row in rows)
    said = ", ".join(f"`{commit}` {n}" for commit, n in commits.most_common())
    return f"Measured at commits (a `+` stands for changes that were landed right after): {said}.\n"


def totals(groups: dict[str, list[dict[str, Any]]]) -> str:
    """One line a set."""
    lines = [
        "| set | models | traced | runs | proven (exact) | all classes: runs | verified "
        "| mean share prunable | classes halved | mean parameters left |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, rows in groups.items():
        exact = [r.get("exact", {}) for r in rows]
        both = [r.get("statistical", {}) for r in rows]
        n = len(rows)
        proved = sum(map(passed, rows))
        halved = sum(f.get("halved", 0) for f in both)
        eligible = sum(f.get("eligible", 0) for f in both)
        left = [
            f["parameters"] / r["parameters"]
            for f, r in zip(both, rows, strict=True)
            if f.get("shapes")
        ]
        lines.append(
            f"| {TITLES[name]} | {n} | {sum(bool(r.get('traced')) for r in rows)} "
            f"| {sum(bool(f.get('shapes')) for f in exact)} "
            f"| **{proved} ({100 * proved / n:.0f} %)** "
            f"| {sum(bool(f.get('shapes')) for f in both)} | {sum(map(statistical_ok, rows))} "
            f"| {percent(mean([r['share'] for r in rows if 'share' in r]))} "
            f"| {percent(halved / eligible if eligible else None)} | {percent(mean(left))} |"
        )
    return "\n".join(lines) + "\n"


def exceptions(rows: list[dict[str, Any]]) -> str:
    """Every model that is not proven, with its cause."""
    found = [(row, why) for row in rows if (why := cause(row))]
    lines = ["## Exceptions\n"]
    lines += ["| set | model | cause |", "|---|---|---|"] if found else ["None."]
    lines += [f"| {row['set']} | {row['name']} | {cell(why)} |" for row, why in found]
    unknown = Counter(op for row in rows for op in row.get("unknown", {}))
    if unknown:
        lines.append("\nOperators without a rule, and in how many models they lock something: ")
        lines.append(", ".join(f"`{op}` {n}" for op, n in unknown.most_common()) + ".")
    return "\n".join(lines) + "\n"


def cause(row: dict[str, Any]) -> str | None:
    """Why a model is not proven in both passes, or None."""
    if row.get("cause"):
        return row["cause"] if not passed(row) else f"(exact proven) {row['cause']}"
    exact, both = row.get("exact", {}), row.get("statistical", {})
    if not passed(row):
        if exact.get("eligible") == 0:
            return f"no class is exact; all classes: verify reports {both.get('verify_error')}"
        if not exact.get("touched"):
            return "every class was given back: " + "; ".join(exact.get("notes", []))[:200]
        if not exact.get("shapes"):
            return "output shapes differ"
        if exact["error"] >= TOLERANCE:
            return f"wrong: relative error {exact['error']:.2g}"
        return f"pruning hardly shows: outputs differ by {exact['changed']:.1g}"
    if exact.get("eligible") == 0:
        return None
    if not exact.get("verify_ok"):
        return f"(exact proven) verify reports {exact['verify_error']:.2g}"
    if not both.get("shapes"):
        return "(exact proven) all classes: output shapes differ"
    if not both.get("verify_ok"):
        return f"(exact proven) all classes: verify reports {both['verify_error']:.2g}"
    return None


def table(name: str, rows: list[dict[str, Any]]) -> str:
    """All models of a set."""
    lines = [
        f"## {TITLES[name]}\n",
        "| model | parameters | traced | classes halved | left | proven | error | changed "
        "| all classes: left | verify | neutral | trace | plan | apply |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        exact, both = row.get("exact", {}), row.get("statistical", {})
        size = row.get("parameters", 0)

        def left(facts: dict[str, Any], size: int = size) -> str:
            return percent(facts["parameters"] / size) if facts.get("parameters") and size else ""

        halved = f"{exact['halved']}/{exact['eligible']}" if "halved" in exact else ""
        lines.append(
            f"| {row['name']} | {count(size)} | {percent(row.get('share'))} | {halved} "
            f"| {left(exact)} | {verdict(row)} "
            f"| {number(exact.get('error'))} | {number(exact.get('changed'))} | {left(both)} "
            f"| {'yes' if both.get('verify_ok') else '**no**'} | {number(both.get('error'))} "
            f"| {seconds(row.get('trace_seconds'))} | {seconds(exact.get('plan_seconds'))} "
            f"| {seconds(exact.get('apply_seconds'))} |"
        )
    return "\n".join(lines) + "\n"


def verdict(row: dict[str, Any]) -> str:
    """Proven or not, and by which pass."""
    if not passed(row):
        return "**no**"
    return "by verify" if row["exact"].get("eligible") == 0 else "yes"


def mean(values: list[float]) -> float | None:
    """Mean, or None of nothing."""
    return sum(values) / len(values) if values else None


def percent(value: float | None) -> str:
    """As ``37 %``."""
    return "" if value is None else f"{100 * value:.0f} %"


def number(value: float | None) -> str:
    """As ``1.2e-07``."""
    return "" if value is None else f"{value:.1e}"


def seconds(value: float | None) -> str:
    """As ``0.31 s``."""
    return "" if value is None else f"{value:.2f} s"


def count(value: int) -> str:
    """Parameters in thousands or millions."""
    return f"{value / 1e6:.1f} M" if value >= 1e6 else f"{value / 1e3:.0f} k"


def cell(text: str) -> str:
    """Text that does not break a table."""
    return text.replace("|", "\\|").replace("\n", " ")
