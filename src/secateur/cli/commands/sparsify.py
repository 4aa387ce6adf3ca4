"""Set weights of a trained model to zero, block by block and without training.

Calibration is text (--text, cut by the model's own tokenizer) or batches (--data). --stream reads
and writes a checkpoint that is larger than memory one block at a time. A run that was killed goes
on when the same command is given again.
"""

from __future__ import annotations

import argparse
import shlex
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secateur.cli import config, data, flags, models, text
from secateur.cli.answer import Answer
from secateur.cli.arguments import named
from secateur.cli.config import Config
from secateur.cli.zeros import Unfinished, layers_of, table
from secateur.errors import ConfigError, StoreError

if TYPE_CHECKING:
    from torch import nn

EXAMPLES = (
    "secateur sparsify zoo:lenet300 --method wanda --amount 0.5 --dry-run",
    "secateur sparsify zoo:lenet300 --method sparsegpt --pattern 2:4 --ignore fc3 --out zeros",
)
_KEYS = "original weights data batch_size method amount scope ignore overrides seed threads device"
_STREAM = ("original", "weights", "scope", "device")  # which need the whole model


def arguments(parser: argparse.ArgumentParser) -> None:
    """The model, the calibration, what goes and where to."""
    parser.add_argument("model", metavar="MODEL", help=models.FORMS)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--dry-run", action="store_true", help="check all, show what would go")
    what.add_argument("--restart", action="store_true", help="forget a run that was killed")
    given = parser.add_argument_group("calibration")
    given.add_argument("--text", metavar="FILE", help="plain text in UTF-8, for language models")
    given.add_argument(
        "--tokenizer", metavar="DIR", help="folder of the tokenizer (default: that of hf:DIR)"
    )
    given.add_argument(
        "--samples", type=int, default=text.NUMBER, metavar="N",
        help=f"pieces of the text (default: {text.NUMBER})",
    )  # fmt: skip
    given.add_argument(
        "--length", type=int, metavar="N",
        help=f"tokens of a piece (default: {text.LENGTH}, or as many as the model takes)",
    )  # fmt: skip
    given.add_argument(
        "--batches", type=int, default=8, metavar="N", help="batches of --data (default: 8)"
    )
    how = parser.add_argument_group("how")
    how.add_argument("--pattern", metavar="N:M", help="N of every M inputs of an output go")
    how.add_argument(
        "--propagate", choices=("pruned", "dense", "both"), default="pruned",
        help="what a block sees: outputs of pruned blocks (default), of dense ones, or both",
    )  # fmt: skip
    how.add_argument(
        "--true-sequential", action="store_true",
        help="gather statistics anew after each group of layers of a block",
    )  # fmt: skip
    how.add_argument(
        "--tune", type=int, metavar="N",
        help="passes over the data that train what stays of each block (default: 0, or 1 for a "
        "pattern without --method)",
    )  # fmt: skip
    how.add_argument(
        "--stream", action="store_true", help="hf:DIR only: one block in memory at a time"
    )
    how.add_argument("--spill", action="store_true", help="keep activations on disk")
    flags.add(parser, f"{_KEYS} dtype out")


def run(options: argparse.Namespace) -> Answer:
    """Sparsify, or show what would go."""
    from secateur.methods import registry

    given = flags.given(options)
    config.check(given, "command line")
    chosen = config.make({**given, "model": options.model})
    method = named(chosen.method, "method")
    if not options.dry_run and chosen.out is None:
        raise ConfigError("--out DIR is missing: name the folder of the result, or try --dry-run")
    if chosen.out is not None and Path(chosen.out).expanduser().exists():
        raise StoreError(f"{chosen.out} is there already: give the name of a new folder as --out")
    if options.stream:
        _streamable(chosen)
    made = _open(chosen, stream=options.stream)
    needs = (
        method is None
        or (s := registry.find(method, chosen.amount).solver) is None
        or s.data
        or bool(options.tune)
    )
    calibration = _calibration(options, chosen, made, needed=needs)
    what: dict[str, Any] = {
        "amount": chosen.amount,
        "pattern": options.pattern,
        "amounts": dict(chosen.overrides),
        "ignore": list(chosen.ignore),
        "propagate": options.propagate,
        "true_sequential": options.true_sequential,
        "tune": options.tune,
    }
    layers = layers_of(made, method, calibration.batches, what)
    if options.dry_run:
        answer = {"dry_run": True, "layers": layers, "calibration": calibration.record}
        return Answer(answer, table(layers, "What would go (nothing was written)"))
    record = {
        "command": shlex.join(["secateur", *options.command_line]),
        "settings": {**asdict(chosen), **what},
        "calibration": calibration.record,
    }
    how = {**what, "data": calibration.batches, "progress": not options.quiet}
    out = Path(str(chosen.out)).expanduser()
    unfinished = Unfinished(out, stream=options.stream)
    if options.restart:
        unfinished.forget()
    with unfinished.kept():
        report: Any
        if options.stream:
            report = _streamed(chosen, method, out, how | {"spill": options.spill})
        else:
            how |= {"spill": unfinished.folder if options.spill else None, "scope": chosen.scope}
            report = _whole(made, chosen, method, out, how | {"checkpoint": unfinished.folder})
    return unfinished.finish(report, record)


@dataclass(frozen=True)
class _Calibration:
    """Batches, or None, and what is said about them."""

    batches: list[Any] | None
    record: Any


def _calibration(
    options: argparse.Namespace, chosen: Config, made: nn.Module, *, needed: bool
) -> _Calibration:
    """What the user gave; else the zoo's data for a model of the zoo, where the method needs any.

    Raises:
        ConfigError: Both kinds are given, or no tokenizer.
        DataError: It cannot be read, or is too short.
    """
    if options.text is not None:
        if chosen.data is not None:
            raise ConfigError("--text and --data are both given: calibrate on one of them")
        folder = options.tokenizer or str(chosen.model).removeprefix("hf:")
        if options.tokenizer is None and folder == chosen.model:
            raise ConfigError(
                f"--text is cut by the model's tokenizer, which {chosen.model} does not come with: "
                "give its folder as --tokenizer DIR"
            )
        found = text.pieces(
            options.text, folder, getattr(made, "config", None),
            number=options.samples, length=options.length, seed=chosen.seed,
        )  # fmt: skip
        return _Calibration(found.batches(), dict(found.record))
    spec = chosen.data
    if spec is None and needed and not options.stream:
        spec = models.find(str(chosen.model), chosen.original).data
    if spec in (None, "none"):
        return _Calibration(None, None)
    if options.batches < 1:
        raise ConfigError(f"--batches {options.batches}: give at least 1")
    loaded = data.find(str(spec), chosen.batch_size, chosen.seed)
    batches = list(islice(iter(loaded.train), options.batches))
    record = {"source": loaded.description, "batches": len(batches)}
    return _Calibration(batches, record | {"hash": data.fingerprint(batches)})


def _streamable(chosen: Config) -> None:
    if not str(chosen.model).startswith("hf:"):
        raise ConfigError(
            f"--stream reads a folder of save_pretrained: {chosen.model} is no hf:DIR"
        )
    for key in _STREAM:
        if getattr(chosen, key) != config.KEYS[key].default:
            raise ConfigError(f"--{key} needs the whole model in memory: leave --stream out")


def _open(chosen: Config, *, stream: bool) -> nn.Module:
    """The model; only its shapes if it is to be streamed."""
    if not stream:
        return models.open_bare(chosen)[1]
    from secateur.engine.shards import open_shards
    from secateur.integrations import pretrained

    models.prepare(chosen)
    folder = Path(str(chosen.model).removeprefix("hf:"))
    made = pretrained.build(folder, models.dtype_of(chosen))
    pretrained.names(made, open_shards(folder))
    return made


def _streamed(chosen: Config, method: Any, out: Path, how: dict[str, Any]) -> Any:
    import secateur as sec

    how |= {"dtype": models.dtype_of(chosen)} | ({} if method is None else {"method": method})
    return sec.sparsify_folder(str(chosen.model).removeprefix("hf:"), out, **how).report


def _whole(made: nn.Module, chosen: Config, method: Any, out: Path, how: dict[str, Any]) -> Any:
    import secateur as sec
    from secateur.engine.shards import copy_files
    from secateur.streaming import companions

    result = sec.sparsify(made, method, inplace=True, **how)
    result.save(out)
    if str(chosen.model).startswith("hf:"):  # the tokenizer, and what else is no weight
        copy_files(companions(Path(str(chosen.model).removeprefix("hf:"))), out)
    return result.report
