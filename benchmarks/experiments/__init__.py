"""Experiments: trainings and measurements that a run of the benchmark does not repeat."""
