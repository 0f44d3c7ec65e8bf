"""Small inputs for every family, which the tests of all frameworks share."""

from zoo import Spec

IMAGE, TOKENS, SEQUENCE = Spec((8, 8, 1), 4), Spec((6,), 4, "int32", 11), Spec((5, 3), 4)
SMALL = {
    "mlp": Spec((4, 3), 4),
    "cnn": Spec((8, 2), 4),
    "lenet": IMAGE,
    "resnet18": IMAGE,
    "wide-resnet": IMAGE,
    "vit": IMAGE,
    "mlp-mixer": IMAGE,
    "lstm": SEQUENCE,
    "gru": TOKENS,
    "transformer": SEQUENCE,
    "char-lm": TOKENS,
    "autoencoder": Spec((5,), 4),
}
