"""The passes over pixels in C, for CPU tensors: ``build`` compiles csrc, ``library`` loads it, ``passes`` calls it."""
