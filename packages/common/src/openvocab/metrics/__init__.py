"""Metrics: pixel counts, scores, boundaries, confidence intervals and calibration."""
