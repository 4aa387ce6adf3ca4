"""Methods that decide anew for every input."""
