"""Structured pruning of a real language model: width and depth, perplexity and speed."""
