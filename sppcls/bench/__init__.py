"""Our numbers against the obvious way, in one process."""
