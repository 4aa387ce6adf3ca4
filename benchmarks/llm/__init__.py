"""Post-training pruning of a real language model: python -m benchmarks.llm writes docs/llm.md."""
