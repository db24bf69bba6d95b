"""Synchronized statistics in two processes, which live as long as the tests of this folder."""
