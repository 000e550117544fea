"""Metrics: counted pixels, the scores made of them, boundaries, and how sure they are."""
