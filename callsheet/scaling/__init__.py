"""How many units the load needs: the policy of worker autoscalers, of `callsheet scale` and of elastic groups."""

from callsheet.scaling.policy import Policy
from callsheet.scaling.records import Bound, Decision, Limits, Load, Rules

__all__ = ["Bound", "Decision", "Limits", "Load", "Policy", "Rules"]
