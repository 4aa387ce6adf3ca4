"""A picture of a graph: layers in order of execution, their widths, and the classes they share."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from secateur.errors import ConfigError
from secateur.files import replacing
from secateur.graph.classes import UnitClass
from secateur.graph.rows import Row, bands, rows
from secateur.graph.show import reasons, table, totals

if TYPE_CHECKING:
    from secateur.graph.graph import Graph

_COLOURS = (
    "#4e79a7", "#f28e2b", "#59a14f", "#e15759", "#b07aa1", "#17a2a2", "#d4a72c", "#d37295",
    "#9c755f", "#7f8fd6", "#7aa532", "#c2185b",
)  # fmt: skip
_HEIGHTS = {"layer": 32, "thin": 16, "join": 18, "repeat": 26}
_WIDEST, _PITCH, _LETTER = 180, 15, 7.25
_STYLE = """
.secateur{--ink:#1f2430;--dim:#9aa1ad;--paper:#ffffff;--stripe:#f5f6f8;--body:#e6e9ee;--fixed:#b4bac4}
@media (prefers-color-scheme:dark){.secateur{--ink:#e4e7ec;--dim:#7d8593;--paper:#15181e;
--stripe:#1c2028;--body:#2b313c;--fixed:#5b6472}}
.secateur text{font:12px ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;fill:var(--ink)}
.secateur .head{font:600 15px system-ui,sans-serif}.secateur .small{font-size:10.5px}
.secateur .dim{fill:var(--dim)}.secateur .note{font:12px system-ui,sans-serif;fill:var(--ink)}
.secateur .stripe{fill:var(--stripe)}.secateur .body{fill:var(--body)}
.secateur .paper{fill:var(--paper)}.secateur .fixed{fill:var(--fixed)}
.secateur .lane{fill:none;stroke-width:3}.secateur .statistical{stroke-dasharray:7 3}
.secateur .hollow{fill:var(--paper);stroke-width:2}
.secateur .edge{stroke:var(--paper);stroke-width:1}
.secateur.pointed [data-c]{opacity:.15}.secateur.pointed .on{opacity:1}
"""
_SCRIPT = """
for (const svg of document.querySelectorAll("svg.secateur")) {
  const marks = [...svg.querySelectorAll("[data-c]")];
  const light = (names) => {
    svg.classList.toggle("pointed", names.length > 0);
    for (const m of marks)
      m.classList.toggle("on", m.dataset.c.split(" ").some((c) => names.includes(c)));
  };
  for (const m of marks) m.addEventListener("mouseenter", () => light(m.dataset.c.split(" ")));
  svg.addEventListener("mouseleave", () => light([]));
}
"""
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width,initial-scale=1">
<style>:root{{color-scheme:light dark}}body{{margin:24px;font-family:system-ui,sans-serif}}
.wide{{overflow-x:auto}}pre{{font-size:12px;line-height:1.35}}</style></head>
<body><div class="wide">{picture}</div>
<h2>Classes</h2><div class="wide"><pre>{table}</pre></div>
<script>{script}</script></body></html>
"""


def draw(graph: Graph, path: str | Path) -> None:
    """Write a picture of the graph to an ``.svg`` or ``.html`` file.

    Args:
        graph: The graph.
        path: Where to; the ending says which of the two. An existing file is replaced.

    Raises:
        ConfigError: Another ending, or a folder that does not exist.
    """
    path = Path(path)
    if path.suffix.lower() not in (".svg", ".html"):
        raise ConfigError(f"{path}: a graph is drawn to a file that ends in .svg or .html")
    if not path.parent.is_dir():
        raise ConfigError(f"{path}: there is no folder {path.parent}; make it first")
    if path.is_dir():
        raise ConfigError(f"{path} is a folder; name a file")
    picture = svg(graph)
    if path.suffix.lower() == ".html":
        picture = _PAGE.format(
            title=_text(f"{type(graph.model).__name__}: unit classes"),
            picture=picture,
            table=_text(table(graph, 150).partition("\n")[2]),
            script=_SCRIPT,
        )
    with replacing(path) as temporary:
        temporary.write_text(picture, encoding="utf-8")


def svg(graph: Graph) -> str:
    """The picture as the text of one ``<svg>`` element that needs nothing else."""
    return _Picture(graph).text()


class _Picture:
    """Rows from top to bottom; at the right of them a lane for every class."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.rows = rows(graph)
        self.top: list[float] = []
        y = 98.0
        for row in self.rows:
            self.top.append(y)
            y += _HEIGHTS[row.kind]
        self.height = y + 24
        # A class that only lives in blocks that are not drawn has no lane; the row counts it.
        shown = {c for row in self.rows if row.kind != "repeat" for c in row.touches}
        spans: dict[str, tuple[int, int]] = {}
        for i, row in enumerate(self.rows):
            for c in row.touches:
                if c in shown:
                    spans[c] = (spans.get(c, (i, i))[0], i)
        self.spans = spans
        self.colour = {c: _COLOURS[k % len(_COLOURS)] for k, c in enumerate(spans)}
        self.lane = _lanes(spans)
        longest = max((len(r.name) for r in self.rows), default=0)
        self.middle = 24 + min(longest, 52) * _LETTER + _WIDEST / 2
        self.words = self.middle + _WIDEST / 2 + 14
        said = max((len(self._words(r)) for r in self.rows if r.kind != "repeat"), default=0)
        self.first_lane = self.words + min(said, 46) * _LETTER + 24
        self.outer = [0] * len(self.rows)  # the last lane in use at each row
        for c, (start, end) in spans.items():
            for i in range(start, end + 1):
                self.outer[i] = max(self.outer[i], self.lane[c])
        widths = [_width(a, graph) for r in self.rows for a in (r.takes, r.makes)]
        self.widest = max((w for w, free in widths if free), default=1)

    def text(self) -> str:
        parts = [*self._stripes(), *self._lines(), *self._layers(), *self._dots()]
        labels = [self._label(i) for i in range(len(self.rows))]
        ends = [self._beyond(i) + len(said) * 6.4 for i, (said, _) in enumerate(labels)]
        width = max(820.0, max(ends, default=0) + 20)
        parts += [mark for _, mark in labels]
        title = f"{type(self.graph.model).__name__}: unit classes and the layers they run through"
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" class="secateur" role="img" '
            f'aria-label="{_text(title)}" width="{width:.0f}" height="{self.height:.0f}" '
            f'viewBox="0 0 {width:.0f} {self.height:.0f}"><style>{_STYLE}</style>'
            f'<rect class="paper" width="100%" height="100%"/>'
            f"{''.join(self._heading())}{''.join(parts)}</svg>"
        )

    def _heading(self) -> Iterator[str]:
        model = _text(type(self.graph.model).__name__)
        yield f'<text class="head" x="16" y="28">{model}</text>'
        summary = _text(totals(self.graph).partition(": ")[2])
        yield f'<text class="note" x="16" y="48">{summary}</text>'
        y, x = 74, 16.0
        key = [
            (f'<circle cx="7" cy="-4" r="5" fill="{_COLOURS[0]}"/>', "makes the units"),
            (f'<circle cx="7" cy="-4" r="3" fill="{_COLOURS[0]}"/>', "has one entry each"),
            (f'<circle class="hollow" cx="7" cy="-4" r="4" stroke="{_COLOURS[0]}"/>', "takes in"),
            (f"{_diamond(7, -4, _COLOURS[0])}", "joins"),
            (f'<path class="lane statistical" d="M0-4H22" stroke="{_COLOURS[0]}"/>', "statistical"),
            ('<rect class="fixed" x="0" y="-8" width="16" height="7"/>', "stays"),
            ('<path class="body" d="M5-10H11L16 2H0Z"/>', "width in, width out"),
        ]
        for mark, words in key:
            shift = 28 if "lane" in mark else 20
            yield f'<g transform="translate({x:.0f} {y})">{mark}'
            yield f'<text class="note" x="{shift}" y="0">{words}</text></g>'
            x += shift + len(words) * 6.4 + 22

    def _stripes(self) -> Iterator[str]:
        for i in range(0, len(self.rows), 2):
            height = _HEIGHTS[self.rows[i].kind]
            yield f'<rect class="stripe" y="{self.top[i]:.0f}" width="100%" height="{height}"/>'

    def _layers(self) -> Iterator[str]:
        before = ""
        for i, row in enumerate(self.rows):
            height = _HEIGHTS[row.kind]
            centre = self.top[i] + height / 2
            yield f'<g data-c="{_keys(row.touches)}"><title>{_text(self._hint(row))}</title>'
            yield _name(row.name, before, centre + 4)
            css = "dim" if row.kind in ("thin", "join") else ""
            starts = {"join": self.middle, "repeat": self.middle - _WIDEST / 2}
            at = starts.get(row.kind, self.words)
            anchor = "middle" if row.kind == "join" else "start"
            words = _text(self._words(row))
            yield f'<text class="{css}" x="{at:.0f}" y="{centre + 4:.0f}" text-anchor="{anchor}">'
            yield f"{words}</text>"
            if row.kind in ("layer", "thin"):
                yield from self._box(row, self.top[i], height)
            yield "</g>"
            before = row.name

    def _box(self, row: Row, top: float, height: float) -> Iterator[str]:
        """A layer as a box from the width it takes in to the width it makes."""
        above, below = row.takes, row.makes if row.makes is not None else row.takes
        if row.kind == "thin":
            yield from self._band(below, top + height / 2 - 2, 4)
            return
        if above is None:
            above = below
        a, b = self._drawn(above), self._drawn(below)
        x, y, band = self.middle, top + 3, 5
        end = top + height - 3
        yield f'<path class="body" d="M{x - a / 2:.1f} {y}H{x + a / 2:.1f}'
        yield f'L{x + b / 2:.1f} {end}H{x - b / 2:.1f}Z"/>'
        yield from self._band(above, y, band)
        yield from self._band(below, end - band, band)

    def _band(self, axis: object, y: float, height: float) -> Iterator[str]:
        if axis is None:
            return
        pieces = bands(axis, self.graph.sizes)
        total = sum(n for n, _ in pieces) or 1
        drawn = self._drawn(axis)
        x = self.middle - drawn / 2
        for n, classes in pieces:
            wide = drawn * n / total
            shades = [(f'fill="{self.colour[c]}"', c) for c in classes if c in self.colour]
            for k, (fill, c) in enumerate(shades or [('class="fixed"', "")]):
                tall = height / max(len(shades), 1)
                mark = f' data-c="{_keys([c])}"' if c else ""
                edge = ' class="edge"' if c and len(pieces) > 1 else ""
                yield (
                    f'<rect x="{x:.2f}" y="{y + k * tall:.2f}" width="{wide:.2f}" '
                    f'height="{tall:.2f}" {fill}{edge}{mark}/>'
                )
            x += wide

    def _drawn(self, axis: object) -> float:
        size, _ = _width(axis, self.graph)
        return max(3.0, _WIDEST * min(1.0, size / self.widest))

    def _x(self, c: str) -> float:
        return self.first_lane + self.lane[c] * _PITCH

    def _beyond(self, i: int) -> float:
        return self.first_lane + (self.outer[i] + 1) * _PITCH + 4

    def _centre(self, i: int) -> float:
        return self.top[i] + _HEIGHTS[self.rows[i].kind] / 2

    def _lines(self) -> Iterator[str]:
        for c, (start, end) in self.spans.items():
            cls = self.graph.classes[c]
            css = "lane" if cls.exact else "lane statistical"
            hint = _text(self._about(c))
            yield (
                f'<path class="{css}" data-c="{_keys([c])}" stroke="{self.colour[c]}" '
                f'd="M{self._x(c):.1f} {self._centre(start):.1f}V{self._centre(end):.1f}">'
                f"<title>{hint}</title></path>"
            )

    def _dots(self) -> Iterator[str]:
        for i, row in enumerate(self.rows):
            for c, how in row.touches.items():
                if c not in self.spans:
                    continue
                x, y, colour = self._x(c), self._centre(i), self.colour[c]
                mark = {
                    "makes": f'<circle cx="{x}" cy="{y}" r="5" fill="{colour}">',
                    "shares": f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}">',
                    "takes": f'<circle class="hollow" cx="{x}" cy="{y}" r="4" stroke="{colour}">',
                }.get(how)
                yield f'<g data-c="{_keys([c])}"><title>{_text(f"{row.name} {how} {c}")}</title>'
                yield f"{mark}</circle></g>" if mark else f"{_diamond(x, y, colour)}</g>"

    def _label(self, i: int) -> tuple[str, str]:
        """At the row where a class begins: its name and size, in its colour."""
        new = [c for c, (start, _) in self.spans.items() if start == i]
        at = f'<text class="small" x="{self._beyond(i):.0f}" y="{self._centre(i) + 4:.0f}">'
        if self.rows[i].kind == "repeat":
            hidden = sum(c not in self.spans for c in self.rows[i].touches)
            own = f"{hidden} classes of their own"
            return (own, f"{at}{own}</text>") if hidden else ("", "")
        if not new:
            return "", ""
        said, spans = [], []
        for c in new[:3]:
            text = _units(self.graph.classes[c])
            said.append(text)
            spans.append(
                f'<tspan fill="{self.colour[c]}" data-c="{_keys([c])}">{_text(text)}'
                f"<title>{_text(self._about(c))}</title></tspan>"
            )
        more = f" +{len(new) - 3}" if len(new) > 3 else ""
        return " · ".join(said) + more, f"{at}{' · '.join(spans)}{more}</text>"

    def _words(self, row: Row) -> str:
        if row.kind in ("join", "repeat"):
            return row.what
        widths = [_width(a, self.graph)[0] for a in (row.takes, row.makes) if a is not None]
        if row.kind == "thin" or not widths:
            return row.what
        return f"{row.what}  {' → '.join(map(str, widths))}"

    def _hint(self, row: Row) -> str:
        lines = [f"{row.name or 'the model'}: {self._words(row)}"]
        lines += [f"{how} {self._about(c)}" for c, how in list(row.touches.items())[:20]]
        return "\n".join(lines)

    def _about(self, c: str) -> str:
        cls = self.graph.classes[c]
        exact = "exact" if cls.exact else f"statistical: {', '.join(reasons(cls))}"
        return f"{c}: {_units(cls)} ({exact})"


def _lanes(spans: dict[str, tuple[int, int]]) -> dict[str, int]:
    """The leftmost lane that is free for as long as a class lives."""
    lane: dict[str, int] = {}
    until: list[int] = []
    for c, (start, end) in sorted(spans.items(), key=lambda s: s[1][0]):
        k = next((k for k, last in enumerate(until) if last < start), len(until))
        until[k : k + 1] = [end]
        lane[c] = k
    return lane


def _width(axis: object, graph: Graph) -> tuple[int, bool]:
    if axis is None:
        return 0, False
    pieces = bands(axis, graph.sizes)
    return sum(n for n, _ in pieces), any(classes for _, classes in pieces)


def _units(c: UnitClass) -> str:
    plurals = {"width": "wide", "query": "queries"}
    return f"{c.size:,} {plurals.get(c.kind, c.kind.replace('_', ' ') + 's')}"


def _name(name: str, before: str, y: float) -> str:
    """A qualified name; what it has in common with the row above is dimmed."""
    shown = name or "(the model)"
    if len(shown) > 52:
        shown = "…" + shown[-51:]
    k = 0
    for part in name.split(".")[:-1] if shown == name else ():
        if not before.startswith(name[:k] + part + "."):
            break
        k += len(part) + 1
    return (
        f'<text x="16" y="{y:.0f}"><tspan class="dim">{_text(shown[:k])}</tspan>'
        f"{_text(shown[k:])}</text>"
    )


def _diamond(x: float, y: float, colour: str) -> str:
    return f'<path class="hollow" stroke="{colour}" d="M{x:.1f} {y - 5:.1f}l5 5l-5 5l-5-5Z"></path>'


def _keys(classes: object) -> str:
    return _text(" ".join(str(c).replace(" ", "_") for c in classes))  # type: ignore[attr-defined]


def _text(text: str) -> str:
    """Text that XML can hold: escaped, without control characters."""
    return escape(re.sub(r"[^\t\n\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "�", text))
