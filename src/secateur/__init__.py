"""secateur: prune any PyTorch model, prove the result, heal it, and show what was gained."""
