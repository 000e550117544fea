"""The training engine that all methods share."""
