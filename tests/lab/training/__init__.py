"""Training: every run here has one thread (conftest.py)."""
