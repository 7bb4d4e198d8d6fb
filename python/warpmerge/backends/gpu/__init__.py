"""The host side of computing on a GPU, shared by the CUDA and the Triton kernels.

A request on a batch of tensors becomes a few launches. `tables` packs what a launch needs of its tensors. `requests`
knows which kernels answer which request. `residency` brings operands to the device and results back; `tiles` divides
them where they do not fit. `staging` moves them through page-locked buffers. `backend` is what the engine calls. A
runtime (`runtime`) is memory, copies and streams; kernels are either native or Triton. With a runtime that stands in
for a GPU all of it runs on a CPU, which is how it is tested.
"""
