"""Models in each framework, data sets, and the ``nngp-zoo`` command."""
