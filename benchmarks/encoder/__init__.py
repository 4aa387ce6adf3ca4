"""Pruning of a real sentence encoder: python -m benchmarks.encoder writes docs/encoder.md."""
