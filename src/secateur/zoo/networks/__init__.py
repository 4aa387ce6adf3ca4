"""One network a file: `RECIPE` says how it was trained and `build()` makes it, untrained."""
