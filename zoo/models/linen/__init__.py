"""Models in Flax Linen, a file a family."""
