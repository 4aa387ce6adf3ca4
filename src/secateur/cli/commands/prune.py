"""Prune a model: trace, plan, remove, prove, heal, measure, save."""

from __future__ import annotations

import argparse
import logging
import shlex
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secateur.cli import config, data, flags, models
from secateur.cli import run as runs
from secateur.cli.answer import Answer
from secateur.cli.arguments import asked, named, selection, words
from secateur.cli.config import Config
from secateur.errors import ConfigError, DataError

if TYPE_CHECKING:
    from secateur.report import Record

log = logging.getLogger(__name__)
EXAMPLES = (
    "secateur prune zoo:resnet8 --keep macs=0.5 --recovery fine-tune:epochs=1 --out out",
    "secateur prune zoo:resnet8 --amount 0.5 --dry-run",
    "secateur prune --config out/config.yaml --recovery none --out unhealed",
)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Every key of the configuration, and what to do with it."""
    parser.add_argument("model", nargs="?", metavar="MODEL", help=models.FORMS)
    parser.add_argument("--config", metavar="FILE", help="YAML file of these settings; flags win")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--dry-run", action="store_true", help="show what would go; write nothing")
    what.add_argument("--print-config", action="store_true", help="show all settings and stop")
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="go on with a run that was killed")
    again.add_argument(
        "--restart",
        action="store_true",
        help="forget a run that was killed, replace one that was finished",
    )
    flags.add(parser)


def run(options: argparse.Namespace) -> Answer:
    """Prune, or show what would be done."""
    chosen = _chosen(options)
    _check(chosen)
    if options.print_config:
        return Answer(asdict(chosen), config.text(chosen))
    _check_amount(chosen)
    if options.dry_run:
        return _dry_run(chosen)
    folder = runs.folder_for(chosen)
    chosen = replace(chosen, out=str(folder))
    if options.resume and runs.is_finished(folder):
        runs.check_same(folder, chosen)
        log.warning("%s holds the finished run: nothing to do", folder)
        from secateur import report

        return _answer(report.read(folder / "metrics.json"), folder)
    with runs.claimed(folder, chosen, resume=options.resume, restart=options.restart) as work:
        command = shlex.join(["secateur", *options.command_line])
        return _answer(_prune(chosen, folder, work, command, progress=not options.quiet), folder)


def _chosen(options: argparse.Namespace) -> Config:
    """The settings: those of the file, then those of the flags, the rest by default."""
    values: dict[str, Any] = {}
    written = flags.given(options)
    config.check(written, "command line")
    if options.config is not None:
        values = config.read(options.config)
    elif options.resume and options.model is None and "out" in written:
        values = config.read(runs.stored_config(Path(written["out"])))
    if options.model is not None:
        values["model"] = options.model
    for one, other in (("amount", "keep"), ("keep", "amount")):
        if one in written and other not in written:
            values.pop(other, None)  # a flag says what is wanted instead
    chosen = config.make({**values, **written})
    if chosen.data is None:
        found = models.find(str(chosen.model), chosen.original)
        chosen = replace(chosen, data=found.data or "none")
    return chosen


def _check(chosen: Config) -> None:
    """Refuse names and options that the run would refuse when it came to them."""
    from secateur import criteria, schedule, scope
    from secateur.cli.resumable import healers
    from secateur.settled import removing

    healers(chosen.recovery, Path(), seed=chosen.seed)
    removing(named(chosen.method, "method"), chosen.amount)
    if chosen.criterion is not None:
        criteria.find(named(chosen.criterion, "criterion"))
    if chosen.scope is not None:
        scope.registry.find(chosen.scope)
    if chosen.schedule is not None:
        schedule.find(chosen.schedule, 0.5)


def _check_amount(chosen: Config) -> None:
    from secateur.settled import removing

    own = removing(named(chosen.method, "method")).amount
    if chosen.amount is None and not chosen.keep and own is None:
        raise ConfigError("say how much: --amount 0.5 (of the units) or --keep macs=0.5 (a budget)")


def _dry_run(chosen: Config) -> Answer:
    """Everything but healing, judging, timing and writing."""
    import secateur as sec

    source, model, inputs = models.open_model(chosen)
    result = sec.prune(
        model,
        inputs,
        schedule=chosen.schedule,
        steps=chosen.steps,
        recovery="none",
        verify=chosen.verify,
        measure={"repeats": 0},
        **selection(chosen, asked(chosen)),
    ).described(title="What would go (nothing was written)", model=source.spec, dry=True)
    answer = {"dry_run": True, "removed": result.plan.removed, "exact": result.plan.exact}
    answer["report"] = result.report.to_dict()
    return Answer(answer, sec.report.console(result.report))


def _prune(chosen: Config, folder: Path, work: Path, command: str, *, progress: bool) -> Record:
    import secateur as sec
    from secateur.cli.resumable import healers

    source, model, inputs = models.open_model(chosen)
    if not source.trained and chosen.weights is None:
        log.warning("%s has random weights: accuracy and scores mean nothing", source.spec)
    found = asked(chosen)
    if chosen.sensitivity and found.evaluate is None:
        raise ConfigError("sensitivity needs test data, or evaluate: FILE.py:FUNCTION")
    what = selection(chosen, found)
    result = sec.prune(
        model,
        inputs,
        recovery=None
        if chosen.recovery is None  # the method's own
        else healers(chosen.recovery, work, seed=chosen.seed, loss=found.loss, progress=progress),
        schedule=chosen.schedule,
        steps=chosen.steps,
        evaluate=found.evaluate,
        metric=found.metric,
        verify=chosen.verify,
        measure={"repeats": chosen.repeats, "warmup": chosen.warmup},
        progress=progress,
        **what,
    )
    fields: dict[str, Any] = {"model": source.spec, "command": command}
    if chosen.recovery is not None:
        fields["settings"] = {**result.report.settings, "recovery": words(chosen.recovery)}
    if found.data is not None:
        hashed = data.fingerprint(found.train)
        fields["data"] = sec.report.Data(found.data.description, hashed)
    if chosen.sensitivity and found.evaluate is not None:
        shared = {
            key: what[key]
            for key in ("criterion", "data", "loss", "ignore", "kinds", "seed")
            if what[key] is not None
        }
        try:
            fields["sensitivity"] = sec.sensitivity(
                model, inputs, found.evaluate, amounts=chosen.sensitivity, **shared
            )
        except DataError as error:  # the run itself is done, and worth keeping
            fields["notes"] = (*result.report.notes, f"sensitivity was not measured: {error}")
            log.warning(fields["notes"][-1])
    result = result.described(**fields)
    result.save(folder)
    runs.finish(folder, chosen)
    return result.report


def _answer(record: Record, folder: Path) -> Answer:
    from rich.console import Group
    from rich.text import Text

    from secateur import report

    files = sorted(p.name for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
    shown = Group(report.console(record), Text(f"{folder}/: {', '.join(files)}"))
    return Answer({"out": str(folder), "files": files, "report": record.to_dict()}, shown)
