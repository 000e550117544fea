"""The benchmark: every installed method on identical data, measured and explained."""
