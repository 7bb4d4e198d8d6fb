"""The kernels in Triton: the same mathematics, to the bit, for GPUs without a CUDA compiler and for the interpreter.

Importing this package imports nothing else; each module imports triton. The host side of each kernel is the function
`launch` of its module (`select` has several). It takes a launch table in device memory
(python/warpmerge/backends/gpu/tables.py) and runs on the current device and stream.
"""
