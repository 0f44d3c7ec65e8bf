"""The same networks in each framework, a file a family, with the same knobs, layer names and initial distributions.

A builder takes the spec of its inputs and the knobs of its family as keyword arguments, and returns a plain model of
its framework. What knobs mean is the same everywhere:

- ``width``: the number of features that grows in the infinite-width limit, as a builder says.
- ``depth``: the number of layers or blocks.
- ``activation``: a name of :data:`zoo.models.parts.ACTIVATIONS`.

The knobs ``parametrisation``, ``init_scale`` and ``dtype`` are those of :mod:`zoo.parametrisation`; they work on every
model, and no builder knows of them. Weights start as LeCun normal, and biases as zero.
"""
