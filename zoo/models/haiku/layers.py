"""Haiku's layers with the initial distributions of Flax, so that frameworks differ only in their random streams."""

from __future__ import annotations

from functools import partial

import haiku as hk

LECUN = hk.initializers.VarianceScaling(1.0, "fan_in", "truncated_normal")
NORMAL = hk.initializers.RandomNormal(1.0)

Linear = partial(hk.Linear, w_init=LECUN)
Conv = partial(hk.ConvND, w_init=LECUN)
Embed = partial(hk.Embed, w_init=NORMAL)
LayerNorm = partial(hk.LayerNorm, axis=-1, create_scale=True, create_offset=True, eps=1e-5)
BatchNorm = partial(hk.BatchNorm, create_scale=True, create_offset=True, decay_rate=0.9, eps=1e-5)
