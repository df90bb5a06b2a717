"""What a network is for, and how well it does that: measured by NumPy alone."""

from hwprune.tasks.metrics import METRICS, Metric
from hwprune.tasks.task import CLASSIFICATION, IMITATION, TASKS, Task

__all__ = ["CLASSIFICATION", "IMITATION", "METRICS", "TASKS", "Metric", "Task"]
