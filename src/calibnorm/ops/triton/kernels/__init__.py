"""The Triton kernels: ``pixels`` are the four passes. Importing it needs triton."""
