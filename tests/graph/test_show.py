"""What a person reads of a graph: the table, the explanation, the picture."""

from __future__ import annotations

import doctest
import itertools
import os
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from secateur.errors import ConfigError, PlanError
from secateur.graph import Graph, draw, repeats, trace
from secateur.graph.show import touched
from secateur.plan.select import plan


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)
    torch.manual_seed(0)


class Block(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.conv1, self.norm = nn.Conv2d(width, inner, 3, padding=1), nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.norm(self.conv1(x)).relu())


class Residual(nn.Module):
    """A stem, equal blocks, one that differs, a norm over the residual width, a head."""

    def __init__(self, blocks: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.blocks = nn.Sequential(*(Block(8, 16) for _ in range(blocks)), Block(8, 12))
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.stem(x)).mean((2, 3))))


@pytest.fixture(scope="module")
def graph() -> Graph:
    return trace(Residual(), torch.randn(2, 3, 9, 9))


# Names.


def expand(pattern: str) -> list[str]:
    """Every name that a pattern stands for, by brute force."""
    parts = re.split(r"\{([\d.,]+)\}", pattern)
    choices: list[list[str]] = []
    for k, part in enumerate(parts):
        if k % 2 == 0:
            choices.append([part])
            continue
        found = []
        for run in part.split(","):
            low, _, high = run.partition("..")
            found += [str(n) for n in range(int(low), int(high or low) + 1)]
        choices.append(found)
    return ["".join(c) for c in itertools.product(*choices)]


names = st.builds(
    lambda parts: ".".join(parts),
    st.lists(st.sampled_from(["0", "1", "2", "3", "7", "a", "conv1", "conv2", "b10"]), min_size=1),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(names, max_size=25))
def test_folded_names_stand_for_exactly_the_names_given(given_names):
    folded = repeats.fold(given_names)
    expanded = [n for pattern in folded for n in expand(pattern)]
    assert sorted(expanded) == sorted(set(given_names))
    assert len(folded) <= len(set(given_names))


def test_examples_of_folding_hold():
    assert doctest.testmod(repeats).failed == 0
    assert repeats.fold(f"b.{i}.fc" for i in range(12)) == ["b.{0..11}.fc"]
    assert repeats.fold(["b.0", "b.2", "b.3", "b.4"]) == ["b.{0,2..4}"]
    assert repeats.listing(["a.x", "a.y", "b", "c"]) == "a.{x, y}, b, c"
    assert repeats.listing(list("abcdefg"), most=3) == "a, b, c, 4 more"
    assert repeats.listing(["n.a", "n.b.0", "n.b.1"], inside="n") == "….a, ….b.{0,1}"
    assert repeats.shared(["m.{0..3}.a.x", "m.{0..3}.a.y", "m.{0..3}.b"]) == "m.{0..3}"
    assert repeats.shared(["a", "a.b"]) == ""


# The table.


def test_the_table_names_every_class_once_with_size_kind_and_share(graph):
    text = str(graph)
    assert "Residual: 5 classes" in text
    assert f"{graph.prunable_share:.2%}" in text
    total = sum(p.numel() for p in graph.model.parameters())
    assert f"{total:,} parameters" in text
    (equal,) = [line for line in text.splitlines() if "blocks.{0..2}.conv1 " in line]
    assert "3 × 16" in equal and "channel" in equal and "exact" in equal
    (other,) = [line for line in text.splitlines() if line.strip().startswith("blocks.3.conv1 ")]
    assert " 12 " in other
    (stem,) = [line for line in text.splitlines() if line.strip().startswith("stem:width ")]
    assert "statistical: layer norm" in stem


def test_the_table_says_what_stays_and_why(graph):
    stays = str(graph).partition("What stays, and why")[2]
    lines = {line.split("  ")[0]: line for line in stays.strip().splitlines()}
    assert set(lines) == {"model input", "kernel size", "model output"}
    assert "stem" in lines["model input"] and "head" in lines["model output"]
    assert "10 axes" in lines["kernel size"]  # of the stem and four 3 x 3 convolutions


def test_the_parameters_of_a_class_are_counted_element_by_element(graph):
    for c in graph.free.values():
        marked = 0
        for name, p in graph.model.named_parameters():
            along = torch.zeros(p.shape, dtype=torch.bool)
            for m in c.members:
                if m.tensor == name:
                    for position, unit in enumerate(m.unit.tolist()):
                        if unit >= 0:
                            along.select(m.axis, position).fill_(True)
            marked += int(along.sum())
        assert touched(graph, c) == pytest.approx(marked)


def test_the_table_keeps_to_its_width(graph):
    from secateur.graph.show import table

    for width in (100, 140):
        assert max(map(len, table(graph, width).splitlines())) <= width


# The explanation.


def test_explaining_a_layer_tells_what_it_makes_takes_and_what_stays(graph):
    text = graph.explain("blocks.0.conv2")
    assert text.startswith("blocks.0.conv2  Conv2d, weight 8×16×1×1")
    assert "makes stem:width: 8 units" in text
    assert "takes in\n  blocks.0.conv1: 16 units" in text


def test_explaining_a_residual_class_names_the_additions_that_join_it(graph):
    text = graph.explain("stem:width")
    assert "blocks.0: add joins stem and blocks.0.conv2" in text
    assert "blocks.1: add joins add in blocks.0 and blocks.1.conv2  (and 2 more alike)" in text
    assert "norm: layer_norm gives each its own entry of weight, bias" in text
    assert "head: linear takes them in with weight" in text
    assert "layer norm in norm" in text


def test_explaining_a_parameter_and_a_locked_class(graph):
    assert "blocks.1.norm.weight  16" in graph.explain("blocks.1.norm.weight")
    assert "model output" in graph.explain("head.bias")
    locked = next(n for n, c in graph.classes.items() if "#" in n)
    assert "stay: kernel size in stem" in graph.explain(locked)


def test_explaining_a_block_covers_the_layers_in_it(graph):
    text = graph.explain("blocks.3")
    assert "makes blocks.3.conv1: 12 units" in text and "makes stem:width: 8 units" in text


def test_a_layer_without_tensors_says_so():
    graph = trace(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)), torch.randn(2, 4))
    assert "only passes on" in graph.explain("1")


def test_a_tied_tensor_is_found_under_both_its_names():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.out = nn.Embedding(11, 6), nn.Linear(6, 11, bias=False)
            self.out.weight = self.embed.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.embed(x))

    graph = trace(Tied(), torch.randint(0, 11, (2, 5)))
    for name in ("embed", "out", "out.weight", "embed.weight"):
        assert "embed: 6 units" in graph.explain(name)


def test_an_unknown_name_is_answered_with_the_nearest(graph):
    with pytest.raises(ConfigError, match=r"'blocks.0.cnv1'; did you mean 'blocks.0.conv1'"):
        graph.explain("blocks.0.cnv1")
    with pytest.raises(ConfigError, match="print"):
        graph.explain("zzzzzzzzz")


# The picture.

SVG = "{http://www.w3.org/2000/svg}"


def picture(graph: Graph) -> ElementTree.Element:
    return ElementTree.fromstring(draw.svg(graph))


def words(root: ElementTree.Element) -> str:
    return "\n".join("".join(t.itertext()) for t in root.iter(f"{SVG}text"))


def test_the_picture_shows_layers_in_order_of_execution_and_every_class(graph):
    root = picture(graph)
    text = words(root)
    order = ["stem", "blocks.0.conv1", "blocks.0.conv2", "blocks.1.conv1", "blocks.3.conv2", "head"]
    places = [text.index(f"\n{name}\n") for name in order]
    assert places == sorted(places)
    lanes = [e for e in root.iter(f"{SVG}path") if e.get("class", "").startswith("lane")]
    drawn = {e.get("data-c") for e in lanes if e.get("data-c")}
    assert drawn == set(graph.free)
    dashed = {e.get("data-c") for e in lanes if "statistical" in e.get("class", "")} - {None}
    assert dashed == {c.name for c in graph.free.values() if not c.exact}
    assert "Conv2d 3×3  3 → 8" in text and "12 channels" in text


def test_bars_are_to_scale(graph):
    """A class's bars are as long as it has units, whoever makes or takes it."""
    scale = set()
    for bar in picture(graph).iter(f"{SVG}rect"):
        c = bar.get("data-c")
        if c is not None:
            scale.add(round(float(bar.get("width")) / graph.sizes[c], 2))
    assert len(scale) == 1


def test_every_mark_has_a_tooltip_that_names_its_class(graph):
    titles = [t.text for t in picture(graph).iter(f"{SVG}title")]
    assert any(t == "stem:width: 8 wide (statistical: layer norm)" for t in titles)
    assert any(t == "blocks.0.conv2 takes blocks.0.conv1" for t in titles)


def test_repeated_blocks_are_drawn_once():
    graph = trace(Residual(30), torch.randn(2, 3, 9, 9))
    text = words(picture(graph))
    assert "blocks.{1..29}\n" in text and "the same, 29 times more" in text
    assert "29 classes of their own" in text
    assert "blocks.0.conv1\n" in text and "blocks.1.conv1\n" not in text
    assert "blocks.30.conv1\n" in text  # it differs


def test_the_root_is_explained_by_the_table(graph):
    assert graph.explain("") == str(graph)


def test_names_are_escaped(tmp_path):
    net = nn.Sequential()
    net.add_module('a<b>&"c"', nn.Linear(4, 6))
    net.add_module("\x01]]>", nn.Linear(6, 3))
    graph = trace(net, torch.randn(2, 4))
    assert 'a<b>&"c"' in words(picture(graph))
    graph.draw(tmp_path / "g.html")
    assert "<b>" not in (tmp_path / "g.html").read_text().partition("<script>")[0]


def test_files_stand_alone(graph, tmp_path):
    for name in ("g.svg", "g.html", "G.SVG"):
        graph.draw(str(tmp_path / name))
        text = (tmp_path / name).read_text()
        assert not re.findall(r"(?:src|href|url)\s*[=(]", text)
        assert set(re.findall(r"https?://[^\"\s]+", text)) == {"http://www.w3.org/2000/svg"}
    assert (tmp_path / "g.svg").read_text() in (tmp_path / "g.html").read_text()
    assert sorted(os.listdir(tmp_path)) == ["G.SVG", "g.html", "g.svg"]


def test_another_ending_or_folder_is_told(graph, tmp_path):
    with pytest.raises(ConfigError, match=r"\.svg or \.html"):
        graph.draw(tmp_path / "g.png")
    with pytest.raises(ConfigError, match="no folder"):
        graph.draw(tmp_path / "no" / "g.svg")
    (tmp_path / "d.svg").mkdir()
    with pytest.raises(ConfigError, match="is a folder"):
        graph.draw(tmp_path / "d.svg")


def test_a_failed_write_keeps_the_old_file(graph, tmp_path, monkeypatch):
    path = tmp_path / "g.svg"
    path.write_text("old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        graph.draw(path)
    assert path.read_text() == "old"
    assert [Path(p).name for p in os.listdir(tmp_path)] == ["g.svg"]


class Masked(nn.Module):
    """Multiplies by a tensor that is a mere attribute, which surgery cannot reach."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 2)
        self.mask = torch.ones(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x) * self.mask)


def test_a_plain_tensor_that_locks_a_width_is_named() -> None:
    graph = trace(Masked(), torch.randn(2, 4))
    assert not graph.free
    assert "plain tensor mask: register it as a buffer" in str(graph)
    with pytest.raises(PlanError, match="plain tensor mask: register it as a buffer"):
        plan(graph, amount=0.5)


def test_a_registered_buffer_is_narrowed() -> None:
    net = Masked()
    mask = net.mask
    del net.mask
    net.register_buffer("mask", mask)
    graph = trace(net, torch.randn(2, 4))
    assert plan(graph, amount=0.5).apply().mask.shape == (4,)


def test_an_operator_without_a_rule_is_named_when_nothing_can_be_pruned() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.ops.secateur_show.odd(self.first(x)))

    @torch.library.custom_op("secateur_show::odd", mutates_args=())
    def odd(x: Tensor) -> Tensor:
        return x.flip(-1)

    odd.register_fake(lambda x: torch.empty_like(x))
    with pytest.raises(PlanError, match=r"no rule for secateur_show\.odd"):
        plan(trace(Odd(), torch.randn(2, 4)), amount=0.5)
