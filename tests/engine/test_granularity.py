"""Granularities against loops: which elements go together, what they score, how many stay."""

import pytest
import torch
from torch import Tensor, nn

import secateur as sec
from secateur.errors import ConfigError, DataError
from secateur.granularity.choose import choose
from secateur.granularity.layer import residual_branches
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


@pytest.mark.parametrize("amount", [0.0, 0.3, 0.9, 0.99])
@pytest.mark.parametrize("allow_empty", [True, False])
def test_a_global_choice_is_the_head_of_one_stable_sort(amount, allow_empty) -> None:
    elements = {n: (s * 4).floor() for n, s in scores().items()}  # with many ties
    elements["b"] -= 9
    cut = units("element", elements)
    masks = choose(elements, cut, amount, "global", allow_empty=allow_empty)
    flat = [(n, i, float(v)) for n, s in elements.items() for i, v in enumerate(s.flatten())]
    first = set()
    if not allow_empty:
        for n in elements:
            of = [u for u in flat if u[0] == n]
            first.add(max(of, key=lambda u: (u[2], -u[1])))
    order = sorted(flat, key=lambda u: (u not in first, -u[2]))
    number = round(len(flat) * (1 - amount))
    kept = {(n, int(i)) for n, m in masks.items() for i in m.flatten().nonzero()}
    assert kept == {u[:2] for u in order[:number]} | {u[:2] for u in first}


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


def patterns_in_loops(values, entries: int, library: int):
    """PCONV written out: count each kernel's best shape, keep the frequent ones, assign."""
    kernels = {n: [k.flatten().tolist() for k in v.flatten(0, 1)] for n, v in values.items()}
    votes: dict[tuple[int, ...], int] = {}
    for kernel in (k for of in kernels.values() for k in of):
        order = sorted(range(len(kernel)), key=lambda i: (-kernel[i], i))
        shape = tuple(sorted(order[:entries]))
        votes[shape] = votes.get(shape, 0) + 1
    frequent = sorted(votes, key=lambda p: -votes[p])
    assert len(frequent) > library and votes[frequent[library - 1]] > votes[frequent[library]]
    kept = {}
    for n, of in kernels.items():
        rows = []
        for kernel in of:
            best = max(frequent[:library], key=lambda p: sum(kernel[i] for i in p))
            rows += [i in best for i in range(len(kernel))]
        kept[n] = torch.tensor(rows).view(values[n].shape)
    return kept


@pytest.mark.parametrize(("entries", "library"), [(1, 2), (4, 1), (8, 3)])
def test_kernels_keep_the_frequent_patterns_of_the_whole_network(entries, library) -> None:
    torch.manual_seed(1)
    elements = {"a": torch.rand(8, 6, 3, 3), "b": torch.rand(12, 8, 3, 3)}
    for values in elements.values():
        values += torch.arange(9).view(3, 3) / 20  # so that some shapes are more frequent
    cut = units(("pattern", {"entries": entries, "library": library}), elements)
    masks = choose(elements, cut, 0.123)
    wanted = patterns_in_loops(elements, entries, library)
    for name, mask in masks.items():
        assert torch.equal(mask, wanted[name])
        assert bool((mask.flatten(2).sum(2) == entries).all())
    # Masked weights stay masked where they score below all others.
    again = {n: v.masked_fill(~masks[n], -torch.inf) for n, v in elements.items()}
    after = choose(again, cut, 0.123)
    assert all(torch.equal(after[n], masks[n]) for n in masks)


class Branches(nn.Module):
    """A stem, a block with two parts, one with its shortcut's own weights, and a shared layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.shared = nn.Linear(3, 6), nn.Linear(6, 6)
        self.one = nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 6))
        self.two, self.three, self.side = nn.Linear(6, 6), nn.Linear(6, 8), nn.Linear(6, 8)
        self.scale = nn.Parameter(torch.ones(6))
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.one(x) + self.scale * self.two(x.relu())
        x = x + self.shared(self.shared(x))
        y = x + self.shared(x)
        return self.head(self.three(y) + self.side(y))


def test_layers_are_what_is_added_to_its_own_input() -> None:
    torch.manual_seed(0)
    net = Branches()
    graph = trace(net, torch.randn(2, 3))
    assert residual_branches(graph) == {
        "one.3": ("one.0.bias", "one.0.weight", "one.1.bias", "one.1.weight", "one.3.bias",
                  "one.3.weight"),
        "": ("scale", "two.bias", "two.weight"),
    }  # fmt: skip
    parameters = {n: p for n, p in net.named_parameters() if p.dim() > 1}
    cut = units("layer", parameters, graph)
    elements = {n: p.detach().abs() for n, p in parameters.items()}
    pair = torch.cat([elements[n].flatten() for n in ("one.1.weight", "one.3.weight")])
    means = torch.stack([pair.mean(), elements["two.weight"].mean()])
    torch.testing.assert_close(cut.reduce(elements)["layers"], means)
    masks = choose(elements, cut, 0.5)
    first = bool(means[0] > means[1])
    for k, names in enumerate(residual_branches(graph).values()):
        assert all(bool(masks[n].all()) == bool(masks[n].any()) == (first == (k == 0))
                   for n in names)  # fmt: skip
    with torch.no_grad():
        for n, p in net.named_parameters():
            p.mul_(masks.get(n, torch.ones(())))
        x = torch.randn(4, 3)
        stem = net.stem(x)
        y = stem + (net.one(stem) if first else net.scale * net.two(stem.relu()))
        y = y + net.shared(net.shared(y))
        y = y + net.shared(y)
        torch.testing.assert_close(net(x), net.head(net.three(y) + net.side(y)))


def test_heads_go_with_their_queries_keys_and_values() -> None:
    torch.manual_seed(0)
    net = nn.TransformerEncoderLayer(8, 4, 16, batch_first=True).eval()
    graph = trace(net, torch.randn(2, 3, 8))
    parameters = {n: p for n, p in net.named_parameters() if p.dim() > 1}
    cut = units("head", parameters, graph)
    elements = {n: p.detach().square() for n, p in parameters.items()}
    masks = choose(elements, cut, 0.25)
    packed = elements["self_attn.in_proj_weight"].view(3, 4, 2, 8)
    worst = int(packed.mean((0, 2, 3)).argmin())
    kept = torch.arange(4) != worst
    for name in ("self_attn.in_proj_weight", "self_attn.in_proj_bias"):
        rows = masks[name].reshape(3, 4, 2, -1)
        assert torch.equal(rows, kept.view(1, 4, 1, 1).expand_as(rows))
    assert set(masks) == {"self_attn.in_proj_weight", "self_attn.in_proj_bias"}


@pytest.mark.parametrize("which", ["pattern", "head", "layer"])
def test_they_last_through_training_and_on_disk(which, tmp_path) -> None:
    torch.manual_seed(0)
    if which == "pattern":
        net: nn.Module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(),
                                       nn.Linear(36, 3))  # fmt: skip
        x, exact = torch.randn(4, 1, 5, 5), 5 / 9
    else:
        layers = [nn.TransformerEncoderLayer(8, 4, 16, batch_first=True) for _ in range(2)]
        net = nn.Sequential(nn.Linear(5, 8), *layers)
        x, exact = torch.randn(4, 3, 5), 0.5
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    more = {"ignore": ["3"]} if which == "pattern" else {"example_inputs": x}
    handle = sec.attach(net, optimizer, "initial_magnitude", amount=0.5, granularity=which, **more)
    for _ in range(3):
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()
    cut, masks = handle.units, handle.masks
    masks.save(tmp_path / "masks.safetensors")
    assert sec.MaskSet.load(tmp_path / "masks.safetensors") == masks
    handle.finish()
    for name, mask in masks.items():
        p = net.get_parameter(name)
        assert not bool(p[~mask].any()) and bool(p[mask].any()) == bool(mask.any())
    if which == "pattern":
        assert masks.sparsity == exact
    else:  # so many whole units, by what makes them
        named = {n: masks[n].float() for n in masks}
        reduced = cut.reduce(named)
        assert {float(v) for values in reduced.values() for v in values} == {0.0, 1.0}
        total = sum(len(v) for v in reduced.values())
        assert sum(float(v.sum()) for v in reduced.values()) == total * (1 - exact)


def test_what_does_not_fit_is_said() -> None:
    elements = {"odd": torch.ones(3, 5)}
    for which, match in (("block", "tile"), ("2:4", "odd"), ("4:2", "0 < n < m"), ("rwo", "row")):
        with pytest.raises(ConfigError, match=match):
            units(which, elements)
    with pytest.raises(ConfigError, match="have 1: name it in ignore"):
        units("pattern", elements)
    plain = nn.Sequential(nn.Linear(5, 3), nn.ReLU(), nn.Linear(3, 2))
    parameters, graph = dict(plain.named_parameters()), trace(plain, torch.randn(2, 5))
    with pytest.raises(ConfigError, match="cut the network"):
        units("layer", parameters, graph)
    with pytest.raises(ConfigError, match="no attention heads"):
        units("head", parameters, graph)
    for which in ("channel", "head", "layer"):
        with pytest.raises(ConfigError, match="example_inputs"):
            units(which, elements)
    with pytest.raises(DataError, match="odd"):
        choose({"odd": torch.full((3, 5), torch.nan)}, units("row", elements), 0.5)


class Conv1D(nn.Module):
    """As the one of Transformers: a linear layer that stores ``(in, out)``."""

    def __init__(self, out: int, inputs: int) -> None:
        super().__init__()
        self.nf = out
        self.weight = nn.Parameter(torch.randn(inputs, out))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


@pytest.mark.parametrize(
    "layer",
    [
        Conv1D(6, 8),
        nn.ConvTranspose2d(8, 6, 3),
        nn.ConvTranspose1d(16, 6, 3, groups=2),
        nn.Conv2d(16, 6, 3, groups=2),
        nn.Linear(8, 6),
    ],
)
def test_n_of_m_inputs_go_whichever_axis_they_are(layer) -> None:
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    handle = sec.attach(layer, optimizer, "initial_magnitude", amount=0.5, granularity="2:4")
    weight, mask = layer.weight.detach(), handle.masks["weight"]
    own = isinstance(layer, Conv1D | nn.ConvTranspose1d | nn.ConvTranspose2d)
    by_input = mask.movedim(0 if own else 1, 0).unflatten(0, (-1, 4))
    assert bool((by_input.sum(1) == 2).all())
    assert torch.equal(weight != 0, mask)


def test_a_group_of_inputs_is_within_one_group_of_a_transposed_convolution() -> None:
    layer = nn.ConvTranspose1d(12, 8, 3, groups=2)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    with pytest.raises(ConfigError, match=r"weight.*6 inputs.*multiple of 4.*ignore="):
        sec.attach(layer, optimizer, "initial_magnitude", amount=0.5, granularity="2:4")


class Scaled(nn.Module):
    """A 1x1 convolution, a depthwise one behind it, and what reads them."""

    def __init__(self, norms: bool) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 1)
        self.depthwise = nn.Conv2d(4, 4, 3, groups=4)
        self.norm = nn.BatchNorm2d(4) if norms else nn.Identity()
        self.last = nn.Conv2d(4, 2, 1)

    def units(self, x: Tensor) -> Tensor:
        return self.norm(self.depthwise(self.first(x).relu()))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.units(x).relu())


@pytest.mark.parametrize("norms", [False, True])
def test_a_factor_acts_once_on_the_way_of_its_unit(norms) -> None:
    torch.manual_seed(0)
    net, x = Scaled(norms), torch.randn(2, 3, 6, 6)
    whole = net.units(x).detach()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    handle = sec.attach(net, optimizer, "sparse_structure_selection", example_inputs=x)
    (aux,) = handle.gated.aux.values()
    aux["scale"].data.copy_(torch.tensor([0.5, 1.0, 0.25, 0.0]))
    seen = []
    hook = net.last.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    net(x)
    hook.remove()
    expected = whole * aux["scale"].detach().view(1, 4, 1, 1)
    torch.testing.assert_close(seen[0], expected.relu())
    handle.finish()
    torch.testing.assert_close(net.units(x).detach(), expected)
    for layer in (net.first, net.depthwise):
        assert (layer.weight.flatten(1) != 0).any(1).tolist() == [True, True, True, False]
