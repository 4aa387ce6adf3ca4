"""FreeTickets: members of one run, what they share and where they differ, and their vote."""

import pytest
import torch
from during_runs import dense, train, vectors

import secateur as sec
from secateur.errors import ConfigError
from secateur.methods.during.free_tickets import collected, vote


def run(steps: int = 40, every: int = 2, **options):
    net = dense()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.2, momentum=0.9)
    handle = sec.attach(
        net, optimizer, "free_tickets", amount=0.8, steps=steps, every=every, tickets=3, **options
    )
    return net, optimizer, handle


def test_tickets_are_the_network_at_the_ends_of_the_refinements() -> None:
    net, optimizer, handle = run()
    states = {}

    def look(step: int) -> None:
        states[step + 1] = {n: t.clone() for n, t in net.state_dict().items()}

    train(net, optimizer, vectors(40), after=look)
    members = collected(handle.moment)
    assert len(members) == 3
    for member, step in zip(members, (24, 32, 40), strict=True):  # 0.4, then fifths
        for name, tensor in member.items():
            assert torch.equal(tensor, states[step][name]), (step, name)


def test_all_members_are_as_sparse_as_asked() -> None:
    net, optimizer, handle = run()
    kept = []

    def look(step: int) -> None:
        if step + 1 in (24, 32, 40):
            kept.append(handle.masks)

    train(net, optimizer, vectors(40), after=look)
    assert [m.kept for m in kept] == [150, 150, 150]
    for member, masks in zip(collected(handle.moment), kept, strict=True):
        for name, mask in masks.items():
            assert not bool(member[name][~mask].any())
        both = sum(int((masks[n] & kept[0][n]).sum()) for n in masks)
        either = sum(int((masks[n] | kept[0][n]).sum()) for n in masks)
        assert (both / either == 1) == (masks is kept[0])


def test_the_first_exchange_of_a_refinement_is_the_largest() -> None:
    net, optimizer, handle = run(share=0.2, jump=0.9)
    moved, old = {}, [handle.masks]

    def look(step: int) -> None:
        now = handle.masks
        moved[step + 1] = (old[0] - now).kept
        old[0] = now

    train(net, optimizer, vectors(40), after=look)
    assert moved[16] > 3 * moved[2] > 0  # 0.4 of the run: the first refinement begins
    assert moved[16] > moved[18] > moved[22] and moved[24] > moved[22] and not moved[40]


def test_the_vote_is_the_mean_of_probabilities() -> None:
    nets = [dense(), dense()]
    with torch.no_grad():
        nets[1][2].bias += 1 * torch.arange(5.0)
    x = vectors(1)[0][0]
    expected = sum(n(x).softmax(1) for n in nets) / 2
    torch.testing.assert_close(vote(nets, x), expected)
    torch.testing.assert_close(vote([nets[0]] * 3, x), nets[0](x).softmax(1))


def test_a_run_without_tickets_says_so() -> None:
    _, _, handle = run()
    with pytest.raises(ConfigError, match="no tickets yet"):
        collected(handle.moment)
    with pytest.raises(ConfigError, match="at least one"):
        sec.attach(dense(), torch.optim.SGD(dense().parameters(), lr=0.1),
                   ("free_tickets", {"tickets": 0}), steps=5)  # fmt: skip
