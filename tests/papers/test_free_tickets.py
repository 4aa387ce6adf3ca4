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


def ends(net, optimizer, handle, steps=(24, 32, 40)):
    """Masks, state and output at the ends of the refinements, as an exchange finds them."""
    found, x = [], vectors(1)[0][0]

    def keep() -> None:
        state = {n: t.clone() for n, t in net.state_dict().items()}
        found.append((handle.masks, state, net(x).detach()))

    train(
        net,
        optimizer,
        vectors(steps[-1]),
        before=lambda step: keep() if step + 1 in steps[:-1] else None,
        after=lambda step: keep() if step + 1 == steps[-1] else None,
    )
    return x, found


def test_tickets_are_the_network_at_the_ends_of_the_refinements() -> None:
    net, optimizer, handle = run()
    x, found = ends(net, optimizer, handle)  # 0.4, then fifths
    members = collected(handle.moment)
    assert len(members) == 3
    for member, (_, state, output) in zip(members, found, strict=True):
        for name, tensor in member.items():
            assert torch.equal(tensor, state[name]), name
        other = dense()
        other.load_state_dict(member)
        assert torch.equal(other(x), output)


def test_all_members_are_as_sparse_as_asked() -> None:
    net, optimizer, handle = run()
    _, found = ends(net, optimizer, handle)
    kept = [masks for masks, _, _ in found]
    assert [m.kept for m in kept] == [150, 150, 150]
    for member, masks in zip(collected(handle.moment), kept, strict=True):
        assert sum(int((member[name] != 0).sum()) for name in masks) == 150
        for name, mask in masks.items():
            assert not bool(member[name][~mask].any())
        both = sum(int((masks[n] & kept[0][n]).sum()) for n in masks)
        either = sum(int((masks[n] | kept[0][n]).sum()) for n in masks)
        assert (both / either == 1) == (masks is kept[0])


def test_without_an_exchange_at_the_end_the_last_step_counts() -> None:
    net, optimizer, handle = run(every=5)
    states = {}

    def look(step: int) -> None:
        states[step + 1] = {n: t.clone() for n, t in net.state_dict().items()}

    train(net, optimizer, vectors(40), after=look)
    for member, step in zip(collected(handle.moment), (24, 32, 40), strict=True):
        assert all(torch.equal(t, states[step][n]) for n, t in member.items())


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
