"""Exit codes, the two streams, and one clear line for every mistake."""

import logging
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from secateur.cli import main as program
from secateur.cli.answer import plain
from secateur.cli.main import command_modules
from secateur.errors import SecateurError

NAMES = ["load-check", "measure", "methods", "prune", "report", "sensitivity", "sparsify", "trace"]


def test_help_and_version_need_no_torch():
    script = (
        "import sys; from secateur.cli import main\n"
        "codes = [main(['--help']), main(['prune', '--help']), main(['--version'])]\n"
        "sys.exit(sum(codes) + ('torch' in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in NAMES)


def test_every_command_says_what_it_does_with_an_example(secateur):
    found = [m.__name__.rpartition(".")[2].replace("_", "-") for m in command_modules()]
    assert found == NAMES
    for name in NAMES:
        ran = secateur(name, "--help")
        assert ran.code == 0
        assert f"secateur {name}" in ran.out.split("examples:")[1]
        assert "--json" in ran.out


def test_the_program_and_the_module_run():
    program = Path(sys.executable).with_name("secateur")
    for command in ([str(program)], [sys.executable, "-m", "secateur"]):
        done = subprocess.run([*command, "--version"], capture_output=True, text=True)
        assert done.returncode == 0
        assert done.stdout.startswith("secateur 0.")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "COMMAND"),
        (["prun"], "did you mean prune"),
        (
            ["methods", "nope"],
            "did you mean scope? known: method, criterion",
        ),
        (["prune", "zoo:resnet8", "--criteron", "l2"], "did you mean --criterion"),
        (["prune", "zoo:resnet8", "--steps", "two"], "invalid int value"),
        (["prune", "zoo:resnet8", "--resume", "--restart"], "not allowed with"),
        (["trace"], "MODEL"),
        (["trace", "zoo:resnet8", "extra"], "unexpected argument 'extra'"),
        (["trace", "zoo:resnet8", "--inp", "1x3"], "did you mean --input"),
        (["report"], "RUN"),
    ],
)
def test_wrong_usage_exits_with_2_and_says_what_may_have_been_meant(secateur, arguments, words):
    ran = secateur(*arguments)
    assert ran.code == 2
    assert ran.out == ""
    assert words in ran.err


def test_an_error_is_one_line_and_debug_shows_the_traceback(secateur):
    ran = secateur("trace", "zoo:resnet9")
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.count("\n") == 1
    assert ran.err.startswith("error: ")
    assert "'resnet8'" in ran.err
    debug = secateur("trace", "zoo:resnet9", "--debug", "--json")
    assert (debug.code, debug.out) == (1, "")
    assert "Traceback" in debug.err
    assert "ConfigError" in debug.err


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (SecateurError("two\n  lines"), 1, "error: two lines\n"),
        (KeyboardInterrupt(), 130, "error: interrupted\n"),
        (ZeroDivisionError("division"), 1, "error: ZeroDivisionError: division (unexpected"),
    ],
)
def test_what_a_command_raises_becomes_an_exit_code(secateur, monkeypatch, error, code, line):
    def fail(options):
        raise error

    monkeypatch.setattr("secateur.cli.commands.methods.run", fail)
    ran = secateur("methods")
    assert (ran.code, ran.out) == (code, "")
    assert ran.err.startswith(line)


def test_prints_logs_and_warnings_go_to_standard_error(secateur, monkeypatch):
    from secateur.cli.commands import methods

    def noisy(options):
        print("printed")  # noqa: T201
        warnings.warn(f"be warned of {options.json}", stacklevel=1)
        logging.getLogger("secateur.prune").info("a step")
        logging.getLogger("secateur.prune").warning("odd")
        return methods.Answer({"x": float("inf")}, "done")

    monkeypatch.setattr(methods, "run", noisy)
    assert secateur("methods", "--json").json == {"x": None}
    ran = secateur("methods")
    assert ran.out == "done\n"
    assert ran.err == "printed\nwarning: be warned of False\nwarning: odd\n"
    assert secateur("methods", "-q").err == "printed\n"
    assert "info: a step" in secateur("methods", "-v").err


def test_a_reader_that_leaves_early_is_no_error():
    done = subprocess.run(
        f"{sys.executable} -m secateur methods | head -n 1; exit ${{PIPESTATUS[0]}}",
        shell=True,
        executable="/bin/bash",
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0
    assert "Traceback" not in done.stderr


def test_json_holds_no_number_that_is_not_finite():
    assert plain({1: (float("nan"), 2.5, None, True)}) == {"1": [None, 2.5, None, True]}


def test_main_takes_the_arguments_of_the_process(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["secateur", "--version"])
    assert program() == 0
    assert capsys.readouterr().out.startswith("secateur ")
