"""Methods that act on a trained network."""
