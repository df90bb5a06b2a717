"""Bytes <-> nonzeros: the solver, the floor, and what makes it up. Nonzeros -> predicted time."""

from hwprune.budget.kernel_time import NetworkTime, TensorTime, TimeLimit, least_share
from hwprune.budget.solver import Fit, Prefixes, fit, floor_of, infeasible, plan, ranking_limit

__all__ = [
    "Fit",
    "NetworkTime",
    "Prefixes",
    "TensorTime",
    "TimeLimit",
    "fit",
    "floor_of",
    "infeasible",
    "least_share",
    "plan",
    "ranking_limit",
]
