"""The passes over pixels in Triton, for CUDA tensors: ``passes`` launches, ``config`` cuts the work, ``kernels`` compute.

Importing it imports no triton: that waits for the first launch.
"""
