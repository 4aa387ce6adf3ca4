"""One paper a file, in folders by when they act: before, during or after training."""

from secateur.methods.registry import Method, entry, find, method, names

__all__ = ["Method", "entry", "find", "method", "names"]
