"""`memory.plan`: what a run will need, before it starts. The planner itself is in `utils/planner`."""

from utils.planner import Plan, plan
from utils.units import GIB

__all__ = ["GIB", "Plan", "plan"]
