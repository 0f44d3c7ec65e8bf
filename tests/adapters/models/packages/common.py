"""What the models of packages are made with."""

import jax

import nngp_plugins as nngp

from ..table import Model, register

KEY = jax.random.key(0)


def model(package, domain):
    """Registers what a function makes: ``f, params, x, kwargs``; the domain is what people call such a model."""

    def of(make):
        def built():
            f, params, x, kwargs = make()
            return Model(f, params, x, {k: v for k, v in kwargs.items() if v is not None}, mixes=True, doubles=False)

        register(f"{package}/{make.__name__}", built)
        return make

    return of


def image(n=4, size=32, channels=3):
    return jax.random.normal(jax.random.key(1), (n, size, size, channels))


def tokens(n=4, length=12, vocab=50):
    return jax.random.randint(jax.random.key(1), (n, length), 1, vocab)


def normal(*shape):
    return jax.random.normal(jax.random.key(1), shape)


def linen(module, x, init=None, call=None, **adapter):
    f = nngp.from_linen(module, **adapter)
    params, state = f.init(KEY, x, **(init or {}))
    return f, params, x, {"state": state, **(call or {})}


def live(module, x, call=None, **adapter):
    f = nngp.from_nnx(module, **adapter)
    params, state = f.split(module)
    return f, params, x, {"state": state, **(call or {})}


def haiku(fn, x, with_state=False, init=None, call=None, **adapter):
    import haiku as hk

    f = nngp.from_haiku((hk.transform_with_state if with_state else hk.transform)(fn), **adapter)
    params, state = f.init(KEY, x, **(init or {}))
    return f, params, x, {"state": state, **(call or {})}
