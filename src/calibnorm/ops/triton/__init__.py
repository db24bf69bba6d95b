"""The passes over pixels in Triton, for CUDA tensors: ``config`` cuts the work, ``passes`` launches it.

Importing it imports no triton: that waits for the first launch.
"""
