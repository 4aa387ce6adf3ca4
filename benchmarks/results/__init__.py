"""Accuracy of pruned networks: one cell is one network, pruned one way, measured and healed."""
