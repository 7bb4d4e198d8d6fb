"""Recipe x models -> jobs. Everything that can be known before a weight is read is checked here."""

from .file_plan import Job, OutputShard, Plan, index_document, make_plan

__all__ = ["Job", "OutputShard", "Plan", "index_document", "make_plan"]
