"""Tickets on real pictures and a real graph: what follows a pruning, measured side by side."""
