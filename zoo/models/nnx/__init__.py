"""Models in Flax NNX, a file a family."""
