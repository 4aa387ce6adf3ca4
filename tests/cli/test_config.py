"""The configuration: strict keys, flags over files, and what is written back reproduces it."""

from dataclasses import asdict

import pytest
import yaml

from secateur.cli import config, flags
from secateur.cli.main import build_parser
from secateur.cli.yaml import dump, load, value
from secateur.errors import ConfigError
from secateur.typed import fits

FLAGS = """--keep macs=0.5 --keep params=0.6 --method flap:scope=uniform
--criterion lp:p=3 --scope global --ignore *.head
--ignore conv1 --override layer1.*=0.25 --kind channel --no-statistical --max-ratio 0.8
--min-width 2 --round-to 8 --reduction max --normalizer sum --recovery bn:batches=2
--recovery distil:temperature=2,base.epochs=3,base.lr=1e-3 --schedule cubic --steps 3
--evaluate none --metric name=top-1 --metric percent=true --input 2x3x8x8 --batch 4 --data none
--batch-size 16 --no-verify --repeats 0 --warmup 1 --sensitivity 0.25,0.5 --seed 7 --threads 1
--device cpu --dtype float32 --out here --weights pretrained --original zoo:resnet8
--loss losses:own --amount 0.5"""

MEANING = {
    "model": "zoo:resnet8", "keep": {"macs": 0.5, "params": 0.6},
    "method": {"flap": {"scope": "uniform"}}, "criterion": {"lp": {"p": 3}},
    "scope": "global", "ignore": ["*.head", "conv1"], "overrides": {"layer1.*": 0.25},
    "kinds": ["channel"], "statistical": False, "max_ratio": 0.8, "min_width": 2, "round_to": 8,
    "reduction": "max", "normalizer": "sum", "schedule": "cubic", "steps": 3, "evaluate": "none",
    "recovery": [
        {"bn": {"batches": 2}}, {"distil": {"temperature": 2, "base": {"epochs": 3, "lr": 0.001}}}
    ],
    "metric": {"name": "top-1", "percent": True}, "inputs": ["2x3x8x8"], "batch": 4,
    "data": "none", "batch_size": 16, "verify": False, "repeats": 0, "warmup": 1,
    "sensitivity": [0.25, 0.5], "seed": 7, "threads": 1, "device": "cpu", "dtype": "float32",
    "out": "here", "weights": "pretrained", "original": "zoo:resnet8", "loss": "losses:own",
    "amount": 0.5,
}  # fmt: skip


def parsed(*arguments):
    return build_parser().parse_args(["prune", *arguments])


def test_every_key_has_a_flag_that_says_the_same():
    values = flags.given(parsed("zoo:resnet8", *FLAGS.split())) | {"model": "zoo:resnet8"}
    assert set(MEANING) == set(config.KEYS)
    assert asdict(config.make(values)) == MEANING
    assert asdict(config.make(value(dump(MEANING), "text"))) == MEANING


def test_what_is_not_given_leaves_no_trace():
    assert flags.given(parsed("zoo:resnet8")) == {}


def test_the_written_configuration_reads_back_as_it_was(tmp_path):
    for values in (MEANING, {"model": "zoo:resnet8"}):
        made = config.make(values)
        path = tmp_path / "config.yaml"
        path.write_text(config.text(made))
        assert config.make(config.read(path)) == made
        assert config.differences(load(path), made) == []
        assert yaml.safe_load(config.text(made)) == asdict(made)


def test_paths_are_made_absolute(net, monkeypatch):
    monkeypatch.chdir(net.parent)
    made = config.make(
        {
            "model": "net.py",
            "data": "net.py",
            "evaluate": "net.py:smallness",
            "weights": "w.safetensors",
        }
    )
    assert made.model == f"{net}:build"
    assert made.data == f"{net}:loaders"
    assert made.evaluate == f"{net}:smallness"
    assert made.weights == str(net.parent / "w.safetensors")
    assert config.make({"model": "zoo:resnet8", "data": "zoo:fashion-mnist"}).data == (
        "zoo:fashion_mnist"
    )
    assert config.make({"model": "hf:."}).model == f"hf:{net.parent}"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("criteron: l2", "there is no key 'criteron': did you mean 'criterion'"),
        ("amount: half", "amount should be a number or none, not 'half'"),
        ("amount: true", "amount should be a number or none, not True"),
        ("seed: 1.5", "seed should be a whole number"),
        ("keep: 0.5", "keep should be a mapping from names to a number"),
        ("keep: {macs: half}", "keep should be a mapping"),
        ("ignore: conv1", "ignore should be a list of text"),
        ("recovery: [3]", "recovery should be a name, or a name with a mapping of options"),
        ("criterion: {lp: 3}", "criterion should be a name, or"),
        ("amount: 0.5\namount: 0.4", "the key 'amount' is there twice"),
        ("amount: [0.5", "line 1"),
        ("- amount", "should hold `key: value` lines, not list"),
        ("model: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ("out: {[1]: 2}", "unhashable"),
        ("3: 4", "there is no key '3'"),
    ],
)
def test_a_wrong_file_is_one_clear_error(text, words, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        config.read(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_file_that_is_not_there_or_not_text_is_one_clear_error(tmp_path):
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(ConfigError, match="cannot be read"):
            config.read(path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError):
        config.read(tmp_path / "binary.yaml")
    (tmp_path / "huge.yaml").write_bytes(b"#" * (2 << 20))
    with pytest.raises(ConfigError, match="too large"):
        config.read(tmp_path / "huge.yaml")
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert config.read(tmp_path / "empty.yaml") == {}


@pytest.mark.parametrize(
    ("text", "number"),
    [("1e-3", 1e-3), ("2.5E+2", 250.0), ("1e3", 1000.0), ("-.5e1", -5.0), ("3", 3), ("0.1", 0.1)],
)
def test_numbers_are_numbers(text, number):
    assert value(text, "here") == number
    assert type(value(text, "here")) is type(number)


@pytest.mark.parametrize("text", ["e1", "1e", "1e3x", "v1e3"])
def test_what_only_looks_like_a_number_is_text(text):
    assert value(text, "here") == text


@pytest.mark.parametrize(
    "arguments",
    [["--keep", "macs"], ["--keep", "=0.5"], ["--criterion", "lp:p"], ["--recovery", "bn:"],
     ["--recovery", "distil:base=1,base.epochs=2"], ["--sensitivity", "[1"]],
)  # fmt: skip
def test_a_flag_that_cannot_be_read_is_an_error_that_names_it(arguments):
    with pytest.raises(ConfigError, match=arguments[0]):
        flags.given(parsed("zoo:resnet8", *arguments))


def test_no_model_is_an_error():
    with pytest.raises(ConfigError, match="no model"):
        config.make({})


def test_types_are_checked_as_annotations_say():
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path
    from typing import Literal

    right = [(1, int), (1, float), (True, bool), ("a", str | None), (None, str | None),
             ({"a": 1}, Mapping[str, float]), ([1], Sequence[int]), ("x", Literal["x", "y"]),
             ("a", str | Path), (len, Callable[[int], int] | None)]  # fmt: skip
    wrong = [(1.5, int), (True, int), (True, float), (1, bool), (1, str | None), ("ab", list[str]),
             ({"a": "b"}, Mapping[str, float]), ([1, "b"], Sequence[int]), ("z", Literal["x"]),
             ("len", Callable[[int], int] | None), (None, int)]  # fmt: skip
    assert [fits(v, kind) for v, kind in right] == [True] * len(right)
    assert [fits(v, kind) for v, kind in wrong] == [False] * len(wrong)
