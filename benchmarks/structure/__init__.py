"""Structure: how the published architectures are built and what they cost."""
