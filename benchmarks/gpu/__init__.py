"""`make gpu`: builds, tests and measures on a machine with a GPU, and writes one result file.

    python -m benchmarks.gpu            build, tests, measurements: about eight minutes
    python -m benchmarks.gpu --smoke    every measurement with tiny sizes, on the CPU where there is no GPU

`__main__` runs the steps; each section of the measurements is a process of its own (`worker`), so that a kernel that
breaks the device's context does not take the others with it. Sections are given a `harness.Bench` and write rows.
"""
