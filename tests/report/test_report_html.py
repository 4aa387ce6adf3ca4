"""The page: whole, self-contained, honest in its drawings, and safe with any name."""

import dataclasses
import os
import re
import sys
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import pytest
from hostile import HOSTILE
from hypothesis import given
from hypothesis import strategies as st

from secateur import report
from secateur.errors import MissingExtraError, StoreError
from secateur.report import figures
from secateur.report.svg import Scale

VOID = {"meta", "link", "img", "br", "input"}


class Reader(HTMLParser):
    """Collects tags, attributes and visible text, and insists that tags are nested."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text.append(data)


@pytest.fixture
def page(record, tmp_path) -> str:
    return report.html(record, tmp_path / "report.html").read_text(encoding="utf-8")


def test_the_page_is_the_same_from_a_record_and_from_its_dict(record, page, tmp_path):
    again = report.html(record.to_dict(), tmp_path / "again.html")
    assert again.read_text(encoding="utf-8") == page


def test_every_part_of_the_record_is_on_the_page(record, page):
    shown = " ".join(" ".join(Reader(page).text).split())
    said = report.verdict(record)
    for expected in (
        record.title,
        *said.parts,
        said.proof,
        *said.warnings,
        record.locked[0].reason,
        record.notes[0],
        record.command,
        record.data.hash,
        record.environment["torch"],
        "Pruned, not healed",
    ):
        assert str(expected) in shown
    assert shown.count("weight distribution") <= 1
    assert sum(tag == "figure" for tag, _ in Reader(page).tags) == 6


def test_what_was_not_measured_is_left_out(tmp_path):
    bare = report.Record("t", "m", report.State(2), report.State(1))
    page = Reader(report.html(bare, tmp_path / "r.html").read_text(encoding="utf-8"))
    assert [tag for tag, _ in page.tags].count("section") == 1
    assert not any(tag == "figure" for tag, _ in page.tags)
    assert "Latency, median" not in " ".join(page.text)


def test_nothing_is_fetched_and_nothing_is_run(page):
    for tag, attributes in Reader(page).tags:
        assert tag not in {"script", "iframe", "object", "embed", "img", "base", "form"}
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in {"src", "href", "action", "xlink:href", "srcset"}:
                assert (value or "").startswith(("data:", "#"))
    assert "url(" not in page and "@import" not in page


def test_figures_and_tables_can_be_read_without_seeing(page):
    reader = Reader(page)
    drawn = [a for tag, a in reader.tags if tag == "svg"]
    assert all(a.get("aria-hidden") == "true" or a.get("aria-label") for a in drawn)
    assert all(a.get("scope") in {"row", "col"} for tag, a in reader.tags if tag == "th")
    named = {a["id"] for _, a in reader.tags if "id" in a}
    sections = [a["aria-labelledby"] for tag, a in reader.tags if tag == "section"]
    assert set(sections) <= named and len(sections) == len(set(sections))


def test_nasty_names_stay_names(hostile, record, tmp_path):
    reader = Reader(report.html(hostile, tmp_path / "r.html").read_text(encoding="utf-8"))
    tags = {tag for tag, _ in reader.tags}
    known = Reader(report.html(record, tmp_path / "k.html").read_text(encoding="utf-8"))
    assert tags <= {tag for tag, _ in known.tags} | {"rect", "details", "summary", "li", "ul"}
    assert not any(name.startswith("on") for _, a in reader.tags for name in a)
    shown = "".join(reader.text)
    for name in HOSTILE[:5]:
        assert name in shown
    assert not re.search("[\x00-\x08\x0b-\x1f\u202e]", shown)


def test_a_page_that_cannot_be_written_leaves_the_old_one(record, tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match=r"report\.html`: No space left"):
        report.html(record, path)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["report.html"]


def test_a_folder_that_is_missing_is_named(record, tmp_path):
    with pytest.raises(StoreError, match="nowhere"):
        report.html(record, tmp_path / "nowhere" / "report.html")


def test_without_jinja2_the_extra_is_named(record, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'secateur\[report\]'"):
        report.html(record, tmp_path / "report.html")
    assert os.listdir(tmp_path) == []
    assert report.card(record) and report.console(record)


def heights(svg: str, css: str) -> list[float]:
    return [float(h) for h in re.findall(rf'height="([\d.]+)" class="fill {css}"', svg)]


def test_bars_of_the_skyline_are_as_high_as_the_layers_are_wide():
    layers = [report.Layer(str(i), "channels", 10 * i, 3 * i) for i in range(1, 31)]
    svg = figures.skyline(layers).svg
    before, after = heights(svg, "dense"), heights(svg, "recovered")
    for i, (b, a) in enumerate(zip(before, after, strict=True)):
        assert b / before[-1] == pytest.approx((i + 1) / 30, abs=1e-3)
        assert a / b == pytest.approx(0.3, abs=5e-3)


def test_dots_of_the_trade_off_lie_where_the_runs_are():
    runs = [report.Point(s / 10, 0.9 - s / 100, s) for s in (1.5, 2.0, 3.0, 4.0)]
    svg = figures.pareto(runs, report.Metric(), report.State(1, accuracy=0.92)).svg
    dots = re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)" r="4.5"', svg)
    xs, ys = zip(*((float(x), float(y)) for x, y in dots), strict=True)
    assert len(dots) == 5  # the dense model is the first
    for i, run in enumerate(runs, start=1):
        assert (xs[i] - xs[0]) / (xs[4] - xs[0]) == pytest.approx((run.speedup - 1) / 3, abs=0.01)
        share = (0.92 - run.accuracy) / (0.92 - runs[-1].accuracy)
        assert (ys[i] - ys[0]) / (ys[4] - ys[0]) == pytest.approx(share, abs=0.01)


def test_histograms_stand_on_one_log_scale():
    dense = report.Histogram((-1.0, 0.0, 1.0), (1000, 10))
    pruned = report.Histogram((-1.0, 0.0, 1.0), (100, 10), zeros=900)
    one, two = figures.distributions(report.Weights(dense, pruned))
    levels = []
    for figure in (one, two):
        path = re.search(r'd="M([^"]*)Z" class="area', figure.svg)
        assert path is not None
        pixels = [tuple(map(float, pair.split())) for pair in path[1].split("L")]
        levels.append((pixels[1][1], pixels[3][1]))
    (thousand, ten), (hundred, ten_again) = levels
    assert ten == ten_again
    assert hundred - thousand == pytest.approx((ten - thousand) / 2, abs=0.2)
    assert "89.1 % exactly zero" in two.caption


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=12), st.booleans())
def test_the_frontier_is_what_no_other_run_beats(points, higher):
    sign = 1 if higher else -1

    def beaten(a: tuple[int, int]) -> bool:
        return any(b[0] >= a[0] and sign * b[1] >= sign * a[1] and b != a for b in points)

    naive = sorted({a for a in points if not beaten(a)})
    assert figures.frontier(points, higher) == naive


@given(st.lists(st.integers(-100, 100), min_size=1, max_size=400), st.integers(2, 60))
def test_thinning_keeps_the_extremes(values, most):
    points = [(float(i), float(v)) for i, v in enumerate(values)]
    kept = figures.thinned(points, most)
    assert len(kept) <= max(most, 2)
    assert kept == sorted(set(kept)) and set(kept) <= set(points)
    assert {min(values), max(values)} <= {value for _, value in kept}


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_are_few_and_inside(low, size):
    scale = Scale(low, low + size, 0, 100)
    ticks = scale.ticks()
    assert 2 <= len(ticks) <= 7
    assert all(-1 <= scale(tick) <= 101 for tick in ticks)


def test_losses_that_are_not_finite_are_gaps_that_are_counted():
    steps = [report.Step(1, 2.0), report.Step(2, None), report.Step(3, 1.0)]
    figure = figures.history(steps)
    assert figure is not None and "1 value was not finite" in figure.caption
    assert figures.history([report.Step(1, None)]) is None


def test_the_figure_of_the_loss_says_at_which_steps():
    steps = [report.Step(5, 2.0), report.Step(10, 1.5), report.Step(20, 1.0)]
    figure = figures.history(steps)
    assert figure is not None
    assert "2 at step 5 and 1 at step 20" in figure.svg
    assert "during recovery" in figure.svg


def test_entries_of_one_layer_are_explained_where_there_are_any(record, page, tmp_path):
    grouped = (report.Layer("stem", "channel", 4, 2), report.Layer("stem#2", "group", 6, 3))
    path = report.html(dataclasses.replace(record, layers=grouped), tmp_path / "report.html")
    shown = " ".join(" ".join(Reader(path.read_text(encoding="utf-8")).text).split())
    assert "its width is their product" in shown
    assert "their product" not in page


def contrast(one: str, two: str) -> float:
    """Return WCAG's contrast ratio of two #rrggbb colours."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted((luminance(one), luminance(two)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_either_scheme(scheme):
    style = Path(str(files("secateur.report") / "page.css")).read_text(encoding="utf-8")
    blocks = re.findall(r":root \{(.*?)\}", style, re.S)
    colours = dict(re.findall(r"--([a-z0-9]+): (#[0-9a-f]{6})", blocks[scheme == "dark"]))
    for ground in ("paper", "card"):
        for name in ("ink", "muted", "accent", "good", "mixed", "bad"):
            assert contrast(colours[name], colours[ground]) >= 4.5, (name, ground)
        for name in ("c1", "c2", "c3", "c4", "c5", "c6", "recovered"):
            assert contrast(colours[name], colours[ground]) >= 3, (name, ground)


def test_a_long_report_is_folded_not_cut(record, tmp_path):
    layers = tuple(report.Layer(f"layer{i}", "channels", 64, i % 65) for i in range(500))
    long = dataclasses.replace(record, layers=layers)
    page = report.html(long, tmp_path / "r.html").read_text(encoding="utf-8")
    assert "All 500 layers" in page
    assert all(f"<bdi>{layer.name}</bdi>" in page for layer in layers)
