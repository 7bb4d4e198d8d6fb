"""Models x method -> jobs; recipe x checkpoints -> plan. What can be known before a weight is read is checked here."""

from .file_plan import OutputShard, Plan, index_text, make_plan
from .jobs import make_jobs

__all__ = ["OutputShard", "Plan", "index_text", "make_jobs", "make_plan"]
