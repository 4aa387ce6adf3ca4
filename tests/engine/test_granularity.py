"""Granularities against loops: which elements go together, what they score, how many stay."""

import pytest
import torch
from torch import Tensor, nn

from secateur.errors import ConfigError, DataError
from secateur.granularity.choose import choose
from secateur.granularity.registry import units
from secateur.graph import trace

SHAPES = {"a": (4, 8), "b": (8, 4, 3, 3)}


def scores(shapes=SHAPES) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {n: torch.rand(s, generator=generator) for n, s in shapes.items()}


def place(which: str, index: tuple[int, ...]) -> tuple[int, ...]:
    """What unit an element belongs to, from its index alone."""
    i, j, *at = index
    return {
        "element": index,
        "row": (i,),
        "column": (j,),
        "kernel": (i, j),
        "block": (i // 4, j // 4),
        "vector": (i, j // 4, *at),
    }[which]


def groups(which: str, shape: tuple[int, ...]) -> list[list[tuple[int, ...]]]:
    found: dict[tuple[int, ...], list] = {}
    for index in torch.ones(shape).nonzero().tolist():
        found.setdefault(place(which, tuple(index)), []).append(tuple(index))
    return [found[key] for key in sorted(found)]


SINGLE = ["element", "row", "column", "kernel", "block", "vector"]


@pytest.mark.parametrize("which", SINGLE)
def test_units_score_the_mean_of_their_elements_and_spread_back(which) -> None:
    elements = scores()
    cut = units(which, elements)
    reduced = cut.reduce(elements)
    for name, shape in SHAPES.items():
        expected = groups(which, shape)
        assert cut.counts[name] == len(expected) and cut.sizes[name] == len(expected[0])
        means = [sum(float(elements[name][i]) for i in unit) / len(unit) for unit in expected]
        torch.testing.assert_close(reduced[name], torch.tensor(means))
    spread = cut.spread({n: torch.arange(k) for n, k in cut.counts.items()})
    for name, shape in SHAPES.items():
        for number, unit in enumerate(groups(which, shape)):
            assert {int(spread[name][i]) for i in unit} == {number}


@pytest.mark.parametrize("amount", [0.0, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("which", SINGLE)
def test_exactly_so_many_of_the_best_units_stay(which, amount) -> None:
    elements = scores()
    masks = choose(elements, units(which, elements), amount)
    ideal, counts = 0.0, 0
    for name, shape in SHAPES.items():
        unit_of = groups(which, shape)
        means = [float(torch.stack([elements[name][i] for i in u]).mean()) for u in unit_of]
        kept = [all(bool(masks[name][i]) for i in u) for u in unit_of]
        assert kept == [any(bool(masks[name][i]) for i in u) for u in unit_of]
        exact = (1 - amount) * len(unit_of)
        assert abs(sum(kept) - exact) < 1 or sum(kept) == 1
        best = sorted(range(len(means)), key=lambda i: -means[i])[: sum(kept)]
        assert sorted(best) == [i for i, k in enumerate(kept) if k]
        ideal, counts = ideal + exact, counts + sum(kept)
    assert counts == round(ideal) or counts == len(SHAPES)


@pytest.mark.parametrize(("n", "m"), [(1, 2), (2, 4), (1, 4), (3, 4), (5, 8)])
def test_of_every_m_inputs_n_go(n, m) -> None:
    elements = scores({"a": (3, 8), "b": (2, 16, 3, 2)})
    elements["a"][0] = 1.0  # ties
    masks = choose(elements, units(f"{n}:{m}", elements), 0.123)
    for name, values in elements.items():
        for i, *at in torch.ones(values.shape)[:, 0].nonzero().tolist():
            line, mask = values[(i, slice(None), *at)], masks[name][(i, slice(None), *at)]
            for start in range(0, len(line), m):
                group = line[start : start + m].tolist()
                best = sorted(range(m), key=lambda k: (-group[k], k))[: m - n]
                assert mask[start : start + m].nonzero().flatten().tolist() == sorted(best)


def test_ties_go_to_the_lower_index_and_the_amount_is_exact() -> None:
    elements = {"a": torch.ones(4, 8), "b": torch.ones(3, 5)}
    for scope in ("uniform", "global"):
        masks = choose(elements, units("element", elements), 0.6, scope)
        assert sum(int(m.sum()) for m in masks.values()) == round(0.4 * 47)
        for mask in masks.values():
            flat = mask.flatten()
            assert bool(flat[: int(flat.sum())].all())


@pytest.mark.parametrize("amount", [0.1, 0.5, 0.8])
def test_units_of_unequal_size_share_one_budget(amount) -> None:
    elements = scores({"small": (12, 3), "large": (6, 40)})
    masks = choose(elements, units("row", elements), amount, "global")
    rows = [
        (float(elements[n][i].mean()), elements[n].shape[1], n, i)
        for n in elements
        for i in range(len(elements[n]))
    ]
    best = {n: max(r for r in rows if r[2] == n) for n in elements}
    order = list(best.values()) + sorted((r for r in rows if r not in best.values()), reverse=True)
    budget = round((1 - amount) * (12 * 3 + 6 * 40))
    totals = [sum(r[1] for r in order[:k]) for k in range(len(order) + 1)]
    number = min(range(len(totals)), key=lambda k: (abs(totals[k] - budget), k))
    kept = {(n, i) for _, _, n, i in order[:number]}
    assert {(n, i) for n in masks for i in range(len(masks[n])) if masks[n][i].all()} == kept
    assert sum(int(m.sum()) for m in masks.values()) == totals[number]


def test_channels_take_along_what_makes_them() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.Flatten(),
        nn.Linear(4 * 25, 3),
    )  # fmt: skip
    graph = trace(net, torch.randn(2, 1, 9, 9))
    parameters = {n: p for n, p in net.named_parameters() if p.dim() > 1}
    cut = units("channel", parameters, graph)
    assert sorted(cut.counts.values()) == [4, 6]
    elements = {n: p.detach().square() for n, p in parameters.items()}
    masks = choose(elements, cut, 0.5)
    for layer, number in ((0, 6), (3, 4)):
        means = [float(elements[f"{layer}.weight"][i].mean()) for i in range(number)]
        best = sorted(range(number), key=lambda i: -means[i])[: number // 2]
        for name in (f"{layer}.weight", f"{layer}.bias", *(["1.weight", "1.bias"] * (layer == 0))):
            rows = masks[name].reshape(number, -1)
            assert bool((rows.all(1) == rows.any(1)).all())
            assert rows.all(1).nonzero().flatten().tolist() == sorted(best)
    assert "5.weight" not in masks


def test_what_does_not_fit_is_said() -> None:
    elements = {"odd": torch.ones(3, 5)}
    for which, match in (("block", "tile"), ("2:4", "odd"), ("4:2", "0 < n < m"), ("rwo", "row")):
        with pytest.raises(ConfigError, match=match):
            units(which, elements)
    with pytest.raises(ConfigError, match="example_inputs"):
        units("channel", elements)
    with pytest.raises(DataError, match="odd"):
        choose({"odd": torch.full((3, 5), torch.nan)}, units("row", elements), 0.5)
