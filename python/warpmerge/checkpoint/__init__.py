"""Model directories: reading shards, and publishing a merged model."""

from .output import OutputDirectory
from .safetensors import TensorEntry, layout, read_header
from .source import INDEX, SINGLE, Checkpoint, Shard

__all__ = [
    "INDEX",
    "SINGLE",
    "Checkpoint",
    "OutputDirectory",
    "Shard",
    "TensorEntry",
    "layout",
    "read_header",
]
