"""Set before JAX starts."""

import os

# most of the time of the tests goes into compiling small functions, which need not run fast
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0"
os.environ["KERAS_BACKEND"] = "jax"
