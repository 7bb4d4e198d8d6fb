"""Benchmarks of warpmerge: every figure is a ratio to a roof that is measured in the same run.

`python -m benchmarks.checkpoints` makes the inputs, `pytest benchmarks` measures, `python -m
benchmarks.results` turns what was measured into one file per machine and commit, and that file into the
tables of the README.
"""
