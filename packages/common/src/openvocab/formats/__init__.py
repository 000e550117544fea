"""File formats of other tools: what they wrote is read, and results are written for them."""
