"""The model card, read by an independent Markdown parser."""

import yaml
from hostile import HOSTILE
from markdown_it import MarkdownIt
from markdown_it.token import Token

from secateur import report


def parse(card: str) -> tuple[dict[str, object], list[Token]]:
    _, head, body = card.split("---\n", 2)
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(body)
    return yaml.safe_load(head), [t for token in tokens for t in (token, *(token.children or ()))]


def text(tokens: list[Token]) -> list[str]:
    return [token.content for token in tokens if token.type == "inline"]


def test_the_table_holds_the_measured_numbers(record):
    head, tokens = parse(report.card(record))
    assert head["library_name"] == "secateur" and head["base_model"] == record.model
    shown = [token.content for token in tokens if token.type == "text"]
    for value in (record.before.parameters, record.after.parameters):
        assert f"{value / 1000:.3g} k" in " ".join(shown)
    for state in (record.before, record.unhealed, record.after):
        assert f"{state.accuracy * 100:.1f} %" in shown
    columns = sum(token.type == "th_open" for token in tokens)
    cells = sum(token.type == "td_open" for token in tokens)
    rows = sum(token.type == "tr_open" for token in tokens) - 1
    assert columns == 5 and cells == columns * rows


def test_the_command_can_be_copied(record):
    _, tokens = parse(report.card(record))
    fences = {token.info: token.content for token in tokens if token.type == "fence"}
    assert fences["sh"] == f"{record.command}\n"
    assert "sec.load(build_model()" in fences["python"]


def test_nasty_names_stay_names(hostile):
    head, tokens = parse(report.card(hostile))
    assert head["base_model"] == HOSTILE[1]
    kinds = {token.type for token in tokens}
    assert not kinds & {"html_block", "html_inline", "link_open", "image", "em_open", "s_open"}
    strong = sum(token.type == "strong_open" for token in tokens)
    assert strong == 1  # the verdict
    assert sum(token.type == "heading_open" and token.tag == "h1" for token in tokens) == 1
    fenced = [token.content for token in tokens if token.type == "fence"]
    assert any("heading `code` ```" in content for content in fenced)
    shown = "".join(token.content for token in tokens if token.type == "text")
    assert HOSTILE[0] in shown and HOSTILE[2] in shown


def test_what_was_not_measured_is_left_out():
    card = report.card(report.Record("t", "m", report.State(2), report.State(1)))
    assert "Latency, median" not in card and "## Run it again" not in card
    assert "Not proven" in card
