"""Bytes <-> nonzeros: the solver, the floor, and what makes it up."""

from hwprune.budget.solver import Fit, Prefixes, fit, floor_of, infeasible, plan, ranking_limit

__all__ = ["Fit", "Prefixes", "fit", "floor_of", "infeasible", "plan", "ranking_limit"]
