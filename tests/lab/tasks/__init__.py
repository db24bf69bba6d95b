"""Tasks through the seam."""
