"""Recoveries are found by name, with hints for what is misspelt."""

from dataclasses import dataclass

import pytest
from torch import nn

from secateur.errors import ConfigError
from secateur.recovery import Distil, FineTune, NoRecovery, Recovery, member, names, recovery
from secateur.recovery.registry import members


def test_every_member_is_found_is_frozen_and_follows_the_protocol():
    assert {"bn", "distil", "fine-tune", "least-squares", "none"} <= set(names())
    for name in names():
        value = recovery(name)
        assert isinstance(value, Recovery)
        assert value == recovery(name)
        with pytest.raises(AttributeError):
            value.anything = 1


def test_options_are_passed_and_nested_ones_make_the_inner_recovery():
    assert recovery("fine-tune", epochs=3, lr=0.1) == FineTune(epochs=3, lr=0.1)
    assert recovery("distil", temperature=2.0, base={"epochs": 3}) == Distil(
        temperature=2.0, base=FineTune(epochs=3)
    )


def test_nothing_is_no_recovery_and_a_ready_one_is_given_back():
    model = nn.Linear(2, 2)
    assert recovery(None) == NoRecovery()
    assert recovery(None).heal(model) == {"recovery": "none"}
    ready = FineTune(lr=0.3)
    assert recovery(ready) is ready


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: recovery("finetune"), "did you mean 'fine-tune'"),
        (lambda: recovery("xyz"), "known: .*bn, bridge, distil"),
        (lambda: recovery("fine-tune", epoch=3), "called 'epoch': did you mean 'epochs'"),
        (
            lambda: recovery("distil", base={"lrr": 1}),
            "no option of recovery 'fine-tune' called 'lrr'",
        ),
        (lambda: recovery(FineTune(), lr=1), "have no place"),
    ],
)
def test_misspelt_names_are_one_clear_error(call, message):
    with pytest.raises(ConfigError, match=message):
        call()


def test_a_users_own_recovery_is_found():
    @member("own")
    @dataclass(frozen=True)
    class Own:
        twice: bool = False

        def heal(self, model, plan=None, data=None, teacher=None):
            return {"recovery": "own"}

    try:
        assert recovery("own", twice=True) == Own(True)
    finally:
        del members["own"]


def test_bars_of_several_steps_say_which_one(capsys):
    import torch
    from torch import nn

    import secateur as sec

    net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
    data = [(torch.randn(8, 4), torch.randint(0, 2, (8,)))]
    how = ("fine-tune", {"steps": 1})
    options = {"amount": 0.5, "data": data, "recovery": how, "measure": False}
    sec.prune(net, torch.randn(2, 4), **options, schedule="linear", steps=2)
    said = capsys.readouterr().err
    assert "healing, step 1 of 2" in said and "healing, step 2 of 2" in said
    sec.prune(net, torch.randn(2, 4), **options)
    assert "step" not in capsys.readouterr().err
