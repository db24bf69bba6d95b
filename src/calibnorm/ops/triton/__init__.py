"""The passes over pixels in Triton, for CUDA tensors: ``config`` cuts the work, ``launch`` and ``passes`` launch it.

Importing it imports no triton: that waits for the first launch.
"""
