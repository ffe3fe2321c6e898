"""What a training run will need, from a configuration alone; see README.md beside this file."""

from utils.planner.plan import Plan, plan
from utils.planner.settings import PlanSettings

__all__ = ["Plan", "PlanSettings", "plan"]
