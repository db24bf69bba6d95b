"""The Triton kernels: ``pixels`` are the four passes, ``coefficients`` the step between them. Importing needs triton."""
