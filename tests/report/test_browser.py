"""The page in a real browser: no console error, no request, readable on a phone and a desk."""

import dataclasses
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import chromium
import pytest

from secateur import report

pytestmark = pytest.mark.skipif(chromium.find() is None, reason=chromium.INSTALL)


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[chromium.Page]:
    with chromium.browse(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, list[str]]]:
    """Somebody who counts who calls; a good page never does."""
    calls: list[str] = []

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            calls.append(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{listening.server_port}", calls
    listening.shutdown()
    listening.server_close()


def bad_page(address: str) -> str:
    return (
        f"<img src='{address}/picture.png'><link rel=stylesheet href='{address}/style.css'>"
        f"<script>console.error('complaint'); fetch('{address}/fetched').catch(() => 0);"
        "throw new Error('thrown')</script>"
    )


def test_a_bad_page_is_seen_to_be_bad(browser, server, tmp_path):
    """Without this the tests below could pass because nobody listens."""
    address, calls = server
    path = tmp_path / "bad.html"
    path.write_text(f"<!doctype html><body>{bad_page(address)}")
    browser.open(path.as_uri())
    assert {f"{address}{name}" for name in ("/picture.png", "/style.css", "/fetched")} <= set(
        browser.requests
    )
    assert {"/picture.png", "/style.css", "/fetched"} <= set(calls)
    assert any("complaint" in error for error in browser.errors)
    assert any("thrown" in error for error in browser.errors)


def test_the_page_itself_forbids_what_was_smuggled_in(browser, server, record, tmp_path):
    address, calls = server
    calls.clear()
    path = report.html(record, tmp_path / "report.html")
    page = path.read_text(encoding="utf-8").replace("</main>", bad_page(address) + "</main>")
    path.write_text(page, encoding="utf-8")
    browser.open(path.as_uri())
    assert browser.errors and all("Content Security Policy" in e for e in browser.errors)
    assert calls == []


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("kind", ["record", "hostile", "bare", "deep"])
def test_the_page_renders_without_an_error_and_without_a_request(
    browser, record, hostile, tmp_path: Path, kind, width, dark
):
    layers = tuple(report.Layer(f"stage{i}.conv", "channels", 64, i) for i in range(60))
    shown = {
        "record": record,
        "hostile": hostile,
        "bare": report.Record("t", "m", report.State(2), report.State(1)),
        "deep": dataclasses.replace(record, layers=layers, unhealed=None),
    }[kind]
    path = report.html(shown, tmp_path / "report.html")
    browser.open(path.as_uri(), width=width, dark=dark)
    assert browser.errors == []
    assert browser.requests == [path.as_uri()]
    assert browser.value("document.title") == f"{shown.title} · secateur"
    assert browser.value("document.documentElement.scrollWidth") <= width
    # figures really have a size and their marks are inside
    drawn = "[...document.querySelectorAll('figure > svg')].filter(s => s.checkVisibility())"
    sizes = browser.value(f"{drawn}.map(s => [s.clientWidth, s.clientHeight])")
    assert all(w > 100 and h > 60 for w, h in sizes)
    assert len(sizes) == {"record": 6, "hostile": 7, "bare": 0, "deep": 7}[kind]
    ground = browser.value("getComputedStyle(document.body).backgroundColor")
    level = sum(map(int, ground[4:-1].split(", "))) / 3
    assert level < 60 if dark else level > 200
