"""Methods that search or learn what to remove."""
