"""The record survives JSON, and says what is wrong with a bad one."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from secateur import report
from secateur.errors import ConfigError, SecateurError, StoreError
from secateur.measure import measure


def test_a_record_comes_back_from_json_as_it_was(record):
    assert report.Record.from_dict(json.loads(json.dumps(record.to_dict()))) == record


def test_json_has_only_what_json_has(record):
    assert json.loads(json.dumps(record.to_dict(), allow_nan=False)) == record.to_dict()


def test_what_is_left_out_gets_its_default():
    values = {"title": "t", "model": "m", "before": {"parameters": 2}, "after": {"parameters": 1}}
    assert report.Record.from_dict(values) == report.Record(
        "t", "m", report.State(2), report.State(1)
    )


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("title",), 3, "record.title should be text, not 3"),
        (("seed",), True, "record.seed should be a whole number, not True"),
        (("before", "macs"), 1.5, "record.before.macs should be a whole number"),
        (("before", "parameters"), -3, "parameters is -3; it cannot be negative"),
        (("before", "accuracy"), math.nan, "record.before.accuracy is nan; write null"),
        (("after", "latency", "median_ms"), 0.0, "record.after.latency: median_ms is 0.0"),
        (("after", "speedup"), {"ratio": 1.0}, "record.after.speedup.p10 is missing"),
        (("after",), [1], "record.after should be an object, not [1]"),
        (("layers",), {"a": 1}, "record.layers should be a list"),
        (("layers", 0, "before"), "64", "record.layers[0].before should be a whole number"),
        (("locked", 0, "reson"), "", "Did you mean `reason`?"),
        (("colour",), "red", "record.colour is not an entry of a record"),
        (("weights", "dense", "edges"), [0.0, 1.0], "edges are one more"),
        (("weights", "dense", "counts", 0), -1, "a count is negative"),
        (("sensitivity", 0, "points", 0), [0.1], "has 1 entries; 2 belong there"),
        (("pareto", 0, "speedup"), math.inf, "record.pareto[0].speedup is inf"),
        (("settings", "amount"), [1], "record.settings.amount should be text, a number"),
        (("schema",), 2, "record.schema is 2 but this secateur reads 1"),
    ],
)
def test_a_bad_entry_is_named(record, path, value, message):
    values = json.loads(json.dumps(record.to_dict()))
    place = values
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(StoreError) as caught:
        report.Record.from_dict(values)
    assert message in str(caught.value)


def test_subclasses_of_text_and_numbers_are_plain_afterwards(record):
    values = record.to_dict()
    values["environment"] = {"torch": torch.__version__, "numpy": np.float64(0.5)}
    found = report.Record.from_dict(values).environment
    assert {type(value) for value in found.values()} == {str, float}


def test_a_needed_entry_that_is_missing_is_named(record):
    values = record.to_dict()
    del values["after"]
    with pytest.raises(StoreError, match=r"record\.after is missing"):
        report.Record.from_dict(values)


@pytest.mark.parametrize("values", [None, [], "record", 3])
def test_what_is_no_object_is_no_record(values):
    with pytest.raises(StoreError, match="record should be an object"):
        report.Record.from_dict(values)


def test_a_bad_value_is_refused_in_python_too():
    with pytest.raises(ConfigError, match=r"zeros is 1\.5"):
        report.State(10, zeros=1.5)


def test_a_truncated_file_is_named(record, tmp_path):
    path = tmp_path / "metrics.json"
    text = json.dumps(record.to_dict())
    path.write_text(text)
    assert report.read(path) == record
    path.write_text(text[: len(text) // 2])
    with pytest.raises(StoreError, match=r"metrics\.json.*truncated"):
        report.read(path)
    with pytest.raises(StoreError, match="cannot read"):
        report.read(tmp_path / "missing.json")
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SecateurError):
        report.read(path)


def test_a_state_takes_over_what_was_measured():
    model = nn.Linear(10, 5)
    state = report.State.of(
        measure(model, torch.zeros(1, 10), against=model, repeats=3, threads=1), accuracy=0.5
    )
    assert (state.parameters, state.macs, state.accuracy) == (55, 50, 0.5)
    assert state.latency is not None and state.latency.threads == 1 and state.latency.repeats == 3
    assert state.latency.p10_ms <= state.latency.median_ms <= state.latency.p90_ms
    assert state.speedup is not None and state.speedup.ratio > 0
