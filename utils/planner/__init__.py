"""What a training run will need, from a configuration alone."""

from utils.planner.plan import Plan, plan

__all__ = ["Plan", "plan"]
