"""A benchmark that lacks a package says which, and what to run."""

import pytest
from benchmarks.needed import need


def test_what_is_missing_is_said_with_what_installs_it() -> None:
    need("zoo", "json", "torch")
    with pytest.raises(SystemExit, match=r"no_such_thing cannot .* install -e '.\[zoo\]'"):
        need("zoo", "json", "no_such_thing")
