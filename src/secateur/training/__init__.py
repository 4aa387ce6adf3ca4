"""Sparse training: masks, gates and penalties through the optimizer's hooks, in nobody's loop."""
