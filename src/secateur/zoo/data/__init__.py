"""One data set a file: `LICENCE`, `load(split, full)`, and what its training augments with."""
