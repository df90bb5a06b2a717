"""What a network is for, and how well it does that: measured by NumPy alone."""

from hwprune.tasks.metrics import METRICS, Metric

__all__ = ["METRICS", "Metric"]
