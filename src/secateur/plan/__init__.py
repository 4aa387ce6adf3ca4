"""What goes, and making it so."""

from secateur.plan.plan import Edit, Plan

__all__ = ["Edit", "Plan"]
