"""Attached masks beside torch.nn.utils.prune and torch.ao.pruning: time, memory, state dicts."""
