"""Methods that decide before training, on weights that have just been initialised."""
