"""What methods share while they run: statistics, block by block work, optimizer hooks, resuming."""
