"""Side by side with Torch-Pruning, the other library that removes coupled channels."""
