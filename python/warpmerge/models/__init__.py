"""Model directories: reading shards, and publishing a merged model."""

from .checkpoint import Checkpoint, Shard, TensorFiles, allow_open_files
from .journal import OutputShard
from .names import INDEX, SINGLE
from .output import OutputDirectory
from .safetensors import Columns, TensorEntry, layout, read_header

__all__ = [
    "INDEX",
    "SINGLE",
    "Checkpoint",
    "Columns",
    "OutputDirectory",
    "OutputShard",
    "Shard",
    "TensorEntry",
    "TensorFiles",
    "allow_open_files",
    "layout",
    "read_header",
]
