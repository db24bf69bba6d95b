"""`calibnorm predict` and `calibnorm export`: a trained classifier on anybody's pictures, and in a file."""
