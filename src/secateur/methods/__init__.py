"""One paper a file, in folders by when they act: before, during or after training."""
