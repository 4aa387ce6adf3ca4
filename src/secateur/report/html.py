"""One self-contained page: nothing is fetched, nothing is run, it can be mailed or archived."""

import contextlib
import os
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from secateur.errors import MissingExtraError, StoreError
from secateur.files import path_of
from secateur.report import figures
from secateur.report.record import Record, as_record
from secateur.report.table import columns, footnotes, legend, rows
from secateur.report.units import count, metric_value, plain, scalar, times
from secateur.report.verdict import verdict

_LISTED = 24  # more layers than this are summed up in a picture, the list is folded


def html(record: Record | Mapping[str, Any], path: str | Path) -> Path:
    """Write the report of ``record`` as one HTML file and return its path.

    Figures are inline SVG and follow the reader's light or dark scheme; there is no script, and a
    content security policy in the page forbids every request. Names from outside are escaped.
    Sections without data are left out. The file appears whole or not at all.

    Raises:
        StoreError: the record is not valid, or the file cannot be written.
        MissingExtraError: jinja2 is not installed.

    Example:
        >>> import tempfile
        >>> from secateur.report import State, Record
        >>> record = Record("Half a net", "zoo:resnet20", State(200), State(100))
        >>> html(record, tempfile.mkdtemp() + "/report.html").name
        'report.html'
    """
    path = path_of(path)
    _write(path, render(as_record(record)))
    return path


def render(record: Record) -> str:
    """Return the page's text."""
    try:
        import jinja2
    except ImportError as error:
        raise MissingExtraError(
            "the HTML report needs jinja2: pip install 'secateur[report]'. "
            "report.console and report.card work without it."
        ) from error
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    # every value from outside passes here, so that no control character reaches the page
    environment.finalize = lambda value: plain(value) if type(value) is str else value
    environment.filters.update(count=count, scalar=scalar, times=times)
    folder = files("secateur.report")
    template = environment.from_string((folder / "page.html").read_text(encoding="utf-8"))
    return template.render(
        record=record,
        verdict=verdict(record),
        columns=columns(record),
        rows=rows(record),
        footnotes=footnotes(record),
        legend=legend(record),
        metric=lambda value: metric_value(value, record.metric),
        widest=max((max(layer.before, layer.after) for layer in record.layers), default=0) or 1,
        folded=len(record.layers) > _LISTED,
        style=(folder / "page.css").read_text(encoding="utf-8"),
        **_drawn(record),
    )


def _drawn(record: Record) -> dict[str, Any]:
    return {
        "distributions": figures.distributions(record.weights) if record.weights else (),
        "skyline": figures.skyline(record.layers) if len(record.layers) > _LISTED else None,
        "sensitivity": figures.sensitivity(
            record.sensitivity, record.metric, record.before.accuracy
        ),
        "pareto": figures.pareto(record.pareto, record.metric, record.before)
        if len(record.pareto) > 1
        else None,
        "history": figures.history(record.history),
    }


def _write(path: Path, content: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("x", encoding="utf-8") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise StoreError(f"cannot write the report `{path}`: {error.strerror or error}.") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
