"""From arguments to an exit code: parse, run one command, write its answer or one line of error."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import pkgutil
import re
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from difflib import get_close_matches
from types import ModuleType
from typing import Any, NoReturn

from secateur.cli import commands
from secateur.cli.answer import write
from secateur.errors import SecateurError

OK, ERROR, USAGE, INTERRUPTED = 0, 1, 2, 130
_ABOUT = "Prune any PyTorch model, prove the result, heal it, and show what was gained."
_CODES = "exit codes: 0 done; 1 an error, told in one line on standard error; 2 wrong usage"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: Without the program's name; default: those of the process.

    Returns:
        The exit code: 0 done, 1 an error (one line on standard error), 2 wrong usage.

    Example:
        >>> main(["--version"])
        secateur 0.1.0
        0
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        options = _parsed(given)
    except SystemExit as leaving:  # how argparse ends: help, or wrong usage
        return int(leaving.code or 0)
    options.command_line = given
    with _logging(options):
        try:
            with redirect_stdout(sys.stderr):  # what a user's module prints is no answer
                answer = options.run(options)
            write(answer, as_json=options.json)
        except SecateurError as error:
            return _failed(_line(error), options)
        except KeyboardInterrupt:
            _failed("interrupted", options)
            return INTERRUPTED
        except BrokenPipeError:  # the reader has seen enough, as `head` does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except Exception as error:  # noqa: BLE001 - a user gets one line; --debug shows the rest
            what = f"{type(error).__name__}: {_line(error)}"
            return _failed(f"{what} (unexpected: --debug shows where; please report it)", options)
    return OK


def build_parser() -> argparse.ArgumentParser:
    """The parser of every command, none of which imports torch before it runs."""
    from secateur import __version__

    parser = _Parser(prog="secateur", description=_ABOUT, epilog=_CODES, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"secateur {__version__}")
    subparsers = parser.add_subparsers(
        title="commands", metavar="COMMAND", required=True, parser_class=_Parser
    )
    for module in command_modules():
        name = module.__name__.rpartition(".")[2].replace("_", "-")
        about = (module.__doc__ or "").strip()
        sub = subparsers.add_parser(
            name,
            help=about.splitlines()[0],
            description=about,
            epilog="examples:\n" + "\n".join(f"  {line}" for line in module.EXAMPLES),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        module.arguments(sub)
        common = sub.add_argument_group("output")
        common.add_argument("--json", action="store_true", help="one JSON document on stdout")
        common.add_argument("-q", "--quiet", action="store_true", help="no progress, no warnings")
        common.add_argument("-v", "--verbose", action="store_true", help="log every step")
        common.add_argument("--debug", action="store_true", help="show the traceback of an error")
        sub.set_defaults(run=module.run, parser=sub)
    return parser


def command_modules() -> Iterator[ModuleType]:
    """The files of the commands, by name."""
    for module in pkgutil.iter_modules(commands.__path__):
        yield importlib.import_module(f"{commands.__name__}.{module.name}")


class _Parser(argparse.ArgumentParser):
    """An ArgumentParser that says which option or command may have been meant."""

    def error(self, message: str) -> NoReturn:
        wrong = re.search(
            r"argument (\S+): invalid choice: '([^']*)' \(choose from (.*)\)", message
        )
        if wrong:
            known = re.findall(r"'([^']*)'", wrong[3])
            message = f"there is no {wrong[1].lower()} {wrong[2]!r}{_near(wrong[2], known)}"
        super().error(message)

    def refuse(self, unknown: Sequence[str]) -> NoReturn:
        """Leave because of arguments that nothing takes."""
        first = unknown[0].partition("=")[0]
        if not first.startswith("-"):
            self.error(f"unexpected argument {first!r}")
        known = [o for o in self._option_string_actions if o.startswith("--")]
        self.error(f"there is no option {first!r}{_near(first, known)}")


def _near(name: str, known: Sequence[str]) -> str:
    close = get_close_matches(name, known, n=2, cutoff=0.5)
    near = f": did you mean {' or '.join(close)}?" if close else ""
    return f"{near}{' ' if near else '; '}known: {', '.join(known)}" if len(known) < 20 else near


def _parsed(given: Sequence[str]) -> argparse.Namespace:
    options, unknown = build_parser().parse_known_args(given)
    if unknown:
        options.parser.refuse(unknown)
    return options


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _failed(line: str, options: Any) -> int:
    if options.debug:
        traceback.print_exc(file=sys.stderr)
    sys.stderr.write(f"error: {line}\n")
    return ERROR


@contextmanager
def _logging(options: Any) -> Iterator[None]:
    """Log to standard error for the length of one command; warnings are logged too."""
    level = logging.ERROR if options.quiet else logging.WARNING
    level = logging.INFO if options.verbose else level
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine())
    loggers = [logging.getLogger("secateur"), logging.getLogger("py.warnings")]
    before = [(each, each.level, each.propagate) for each in loggers]
    logging.captureWarnings(True)
    try:
        for each in loggers:
            each.addHandler(handler)
            each.setLevel(level)
            each.propagate = False
        yield
    finally:
        logging.captureWarnings(False)
        for each, old, propagate in before:
            each.removeHandler(handler)
            each.setLevel(old)
            each.propagate = propagate


class _OneLine(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        if record.name == "py.warnings":  # "path:line: Kind: message\n  source line"
            first = record.getMessage().partition("\n")[0]
            return "warning: " + first.split("Warning: ", 1)[-1]
        return " ".join(f"{record.levelname.lower()}: {record.getMessage()}".split())
