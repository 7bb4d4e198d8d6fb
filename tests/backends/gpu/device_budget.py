"""How much device memory makes a backend work in tiles."""

import math

from warpmerge.backends.gpu.backend import IN_FLIGHT, SCRATCH_SHARE
from warpmerge.backends.gpu.tables import ALIGN, CHUNK
from warpmerge.backends.gpu.tiles import footprint


def budget_for(tasks, chunks=1):
    """Bytes of device memory in which `chunks` chunks of the largest of these tasks are worked on at once."""
    least = max(footprint(t, min(t.info.count, chunks * CHUNK)) for t in tasks)
    return math.ceil(2 * (least + ALIGN) * IN_FLIGHT / (1 - SCRATCH_SHARE)) + IN_FLIGHT
