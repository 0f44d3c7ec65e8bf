"""Models of packages on the registry, small and at random initialisation; ``requirements.txt`` installs them."""
