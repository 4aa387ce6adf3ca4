"""What a benchmark needs beside secateur: said in one line before it starts, not after hours."""

from importlib.util import find_spec


def need(extra: str, *packages: str) -> None:
    """Stop the program with what to install if a package of an extra is not there.

    Example:
        >>> need("zoo", "json")
    """
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise SystemExit(
            f"{', '.join(missing)} cannot be imported: run `.venv/bin/pip install -e '.[{extra}]'`"
        )
