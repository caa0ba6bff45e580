"""PyTorch's CUDA caching allocator as a simulation: what a trace of allocations and frees would reserve on a GPU.

`settings` reads PYTORCH_CUDA_ALLOC_CONF, `blocks` has the pools of free blocks, `simulator` the allocator that takes a
segment for every large request, `expandable` the one that grows its segments page by page, `direct` a device without
any cache, `resumed` a device that is already in use, `kinds` chooses between them. Torch is not known here.

Source: c10/cuda/CUDACachingAllocator.cpp and c10/core/AllocatorConfig.h, PyTorch 2.6 and 2.13. Where CUDA puts a new
segment is not published; here addresses only rise. They decide between free blocks of one size, and nothing else.
Checked by: benchmarks/profile/allocator_truth.py, request by request, on 36 histories of real runs.
"""
