"""Models in Haiku, a file a family."""
