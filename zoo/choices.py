"""The names that options may have, in a file that imports nothing, so that the command line refuses others at once."""

CHOICES: dict[str, tuple[str, ...]] = {
    "parametrisation": ("standard", "ntk", "mup"),
    "dtype": ("float32", "bfloat16", "float16"),
    "activation": ("relu", "gelu", "silu", "tanh", "identity"),
    "norm": ("batch", "layer"),
    "optimizer": ("adam", "adamw", "lion", "sgd", "momentum"),
    "schedule": ("constant", "cosine", "linear", "warmup-cosine"),
}
