"""Methods that act while a network is trained."""
