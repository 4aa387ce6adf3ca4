"""One command a file, found by looking: a docstring, EXAMPLES, ``arguments`` and ``run``."""
