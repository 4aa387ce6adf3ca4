"""When: how much is gone at which point of a process; one schedule a file, found by name."""

from secateur.schedule.registry import Schedule, find, names, schedule

__all__ = ["Schedule", "find", "names", "schedule"]
