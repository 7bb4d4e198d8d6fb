"""Calls from several threads, and from a child of a process that has merged before."""

import math
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
import warpmerge as wm
from kernel_helpers import assert_same_bits, family

ROUNDS = 25


def test_an_error_in_one_thread_leaves_the_others_alone():
    base, models = family("fp32", 3, 120_001)
    broken = [m.clone() for m in models]
    broken[1][5] = math.nan
    options = {"base": base, "weight": [0.2, 0.3, 0.5], "density": 0.4}
    wanted = wm.merge_tensors(models, "ties", **options)
    problems = []

    def merge(tensors, error):
        for _ in range(ROUNDS):
            try:
                got = wm.merge_tensors(tensors, "ties", **options)
            except Exception as raised:
                if not isinstance(raised, error):
                    problems.append(repr(raised))
            else:
                if error or not torch.equal(got, wanted):
                    problems.append("a wrong result")

    threads = [threading.Thread(target=merge, args=(models, ())) for _ in range(3)]
    threads.append(threading.Thread(target=merge, args=(broken, wm.CheckpointError)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert_same_bits(wm.merge_tensors(models, "ties", **options), wanted)


CHILD = """
import os
import numpy as np
import warpmerge as wm

a = np.arange(300_000, dtype=np.float32)
wanted = wm.merge_tensors([a, a + 1], "linear", weight=1, backend="{backend}")
child = os.fork()
if not child:
    got = wm.merge_tensors([a, a + 1], "linear", weight=1, backend="{backend}")
    raise SystemExit(0 if (got == wanted).all() else 3)
status = os.waitpid(child, 0)[1]
again = wm.merge_tensors([a, a + 1], "linear", weight=1, backend="{backend}")
raise SystemExit(status or int(not (again == wanted).all()))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("backend", ["cpu", "cuda"])
def test_a_child_of_a_process_that_has_merged(backend):
    if backend == "cuda":
        pytest.importorskip("warpmerge._cuda_emulated", reason="the emulated CUDA module is not built")
    environment = {**os.environ, "WARPMERGE_CUDA_EMULATION": "1"}
    done = subprocess.run([sys.executable, "-c", CHILD.format(backend=backend)], env=environment, timeout=60)
    assert done.returncode == 0


def test_numpy_results_are_the_callers():
    """Nothing of a call is used by the next one."""
    a = np.ones(5000, np.float32)
    first = wm.merge_tensors([a, a * 3], "linear", weight=1)
    wm.merge_tensors([a * 5, a * 7], "linear", weight=1)
    assert (first == 2).all()
