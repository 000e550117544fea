"""Evaluation: running a segmenter over labelled images, its log, its protocol and its results."""
