"""`memory.plan`: what a run will need, before it starts. The planner itself is in `utils/planner`."""

from utils.meter import GIB
from utils.planner import Plan, plan

__all__ = ["GIB", "Plan", "plan"]
