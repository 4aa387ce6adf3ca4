"""What ``secateur sparsify`` shows, and the folders that it writes."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secateur.cli.answer import Answer, plain
from secateur.cli.yaml import dump
from secateur.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

    from secateur.sparsify import SparsityReport

log = logging.getLogger(__name__)
CONFIG = "sparsify.yaml"
_ROWS = 40  # of a table, before it is cut


@dataclass(frozen=True)
class Unfinished:
    """The hidden folder beside a result in which finished blocks are kept until it is whole.

    Attributes:
        out: Where the result will be.
        stream: The run keeps its files as ``sparsify_folder`` does.
    """

    out: Path
    stream: bool

    @property
    def folder(self) -> Path:
        """Where finished blocks are."""
        return self.out.with_name(f".{self.out.name}.{'unfinished' if self.stream else 'blocks'}")

    def forget(self) -> None:
        """Begin anew."""
        shutil.rmtree(self.folder, ignore_errors=True)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Keep finished blocks if the run breaks off, and nothing otherwise."""
        try:
            yield
        except BaseException:
            if any(self.folder.rglob("block-*.safetensors")):
                log.warning(
                    "%s keeps the finished blocks: the same command goes on with them, --restart "
                    "forgets them",
                    self.folder,
                )
            elif not self.stream:
                self.forget()
            raise
        self.forget()

    def finish(self, report: SparsityReport, record: Mapping[str, Any]) -> Answer:
        """Write what the run depended on into the folder; what came of it, as an answer."""
        from secateur.environment import environment
        from secateur.files import write_text, write_together

        text = dump(plain({**record, "environment": environment()}))
        write_together(self.out, {CONFIG: write_text(text)})
        found = {**asdict(report), "sparsity": report.sparsity, "overall": report.overall}
        files = sorted(p.name for p in self.out.iterdir() if p.is_file())
        answer = {
            "out": str(self.out),
            "files": files,
            "report": found,
            "calibration": record["calibration"],
        }
        return Answer(answer, f"{report}\n{self.out}/: {', '.join(files)}")


def layers_of(
    model: nn.Module, method: Any, batches: list[Any] | None, what: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """The weights that a run would look at, and how many would go, without running it.

    Args:
        model: Its weights are not looked at.
        method, batches, what: As of ``sec.sparsify``.

    Raises:
        ConfigError: As of ``sec.sparsify``; or a pattern does not fit a layer.
        DataError: The batches do not fit the model.
    """
    from secateur.engine.blocks import find_blocks
    from secateur.engine.calibration import calibration
    from secateur.engine.products import Layer
    from secateur.engine.sequential import block_weights
    from secateur.methods.recipe import recipe
    from secateur.sparsify import job_of

    method, tune = recipe(method, what.get("tune"), what.get("pattern") is not None)
    chosen, job = job_of(model, method, masks=None, **{**what, "tune": tune})
    if batches is not None or (chosen.solver is not None and chosen.solver.data):
        for _ in calibration(model, batches):
            pass
    rows = []
    for block in find_blocks(model):
        for name, p in block_weights(model.get_submodule(block.name), block).items():
            if job.ignored(name):
                continue
            outputs, inputs = p.shape[-2:] if p.dim() == 3 else p.flatten(1).shape
            target = job.target(Layer(name, name, (outputs, inputs), (inputs, 1)))
            gone = round(target.amount * p.numel())
            if target.pattern is not None:
                n, m = target.pattern
                gone = p.numel() * n // m
                if inputs % m and p.dim() != 3:
                    raise ConfigError(
                        f"{name} has {inputs} inputs, which cannot be split into groups of {m}: "
                        "leave it out with --ignore, or choose another pattern"
                    )
            rows.append({"layer": name, "shape": list(p.shape), "removed": gone})
            rows[-1] |= {"total": p.numel()}
    if not rows:
        raise ConfigError("no layer is left to prune: --ignore matches all of them")
    return rows


def table(layers: list[dict[str, Any]], title: str) -> Any:
    """The layers for the terminal, the first ones if there are many, and their sum."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    shown = Table(title=title, box=box.SIMPLE_HEAD)
    shown.add_column("layer", overflow="fold")
    for column in ("shape", "zeros", "of"):
        shown.add_column(column, justify="right")
    for row in layers[:_ROWS]:
        shape = " x ".join(map(str, row["shape"]))
        shown.add_row(Text(row["layer"]), shape, f"{row['removed']:,}", f"{row['total']:,}")
    if len(layers) > _ROWS:
        shown.add_row(f"and {len(layers) - _ROWS} more", "", "", "")
    gone, total = (sum(row[key] for row in layers) for key in ("removed", "total"))
    shown.add_row(f"all {len(layers)}", f"{gone / total:.1%}", f"{gone:,}", f"{total:,}")
    return shown
