"""Sanity checks: what each of them keeps, and what it changes."""

import pytest
import torch
from during_runs import dense, vectors
from torch import nn

import secateur as sec
from secateur.analyse.sanity import half, reinitialised, shuffled
from secateur.errors import DataError, PlanError


def snip() -> tuple[nn.Module, sec.MaskSet]:
    net = dense()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    return net, sec.attach(net, optimizer, "snip", amount=0.8, data=vectors(2)).finish().masks


def test_a_shuffle_keeps_the_number_of_each_layer_and_no_place() -> None:
    _, masks = snip()
    mixed = shuffled(masks, 3)
    for n, m in masks.items():
        kept, other = int(m.sum()), int(mixed[n].sum())
        assert kept == other
        both = int((m & mixed[n]).sum())
        assert both < kept  # by chance a share of the density agrees
    assert shuffled(masks, 3) == mixed != shuffled(masks, 4)


def test_new_values_are_those_of_a_new_network_under_the_old_mask() -> None:
    net, masks = snip()
    state = torch.random.get_rng_state()
    assert reinitialised(net, masks, seed=5) is net
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(5)
    fresh = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 5))
    masks.apply(fresh)
    for a, b in zip(net.parameters(), fresh.parameters(), strict=True):
        assert torch.equal(a, b)


def test_half_of_the_data_gives_another_mask_of_the_same_size() -> None:
    batches = vectors(6)
    part = half(batches, 1)
    assert len(part) == 3 and all(any(b is c for c in batches) for b in part)
    net = dense()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    whole = sec.attach(net, optimizer, "snip", amount=0.8, data=batches)
    masks = whole.masks
    whole.detach()
    net = dense()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    other = sec.attach(net, optimizer, "snip", amount=0.8, data=part).masks
    assert other != masks and other.kept == masks.kept


def test_what_cannot_be_done_is_said_and_leaves_the_model() -> None:
    _, masks = snip()
    with pytest.raises(PlanError):
        reinitialised(nn.Linear(2, 2), masks)
    with pytest.raises(DataError, match="reset_parameters"):
        reinitialised(nn.Sequential(nn.ReLU()))
    with pytest.raises(DataError, match="no batch"):
        half([])
