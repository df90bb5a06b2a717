"""Bytes <-> nonzeros: the solver, the floor, and what makes it up."""

from hwprune.budget.solver import Fit, fit, floor_of, infeasible, plan, ranking_limit

__all__ = ["Fit", "fit", "floor_of", "infeasible", "plan", "ranking_limit"]
