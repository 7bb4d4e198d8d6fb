"""Triton kernels: the same mathematics for a GPU without a CUDA compiler. None are here yet."""
