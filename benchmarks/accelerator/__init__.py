"""The rows of ``harness.py --accelerator``, the most important first, as the lists of cases that they are made of."""

ROWS = {
    "tracking": ("training.TRACKING", "a training with snapshots of every layer, and what its first one compiles"),
    "symmetric": ("contraction.SYMMETRIC", "one large symmetric contraction in each precision"),
    "sizes": ("contraction.SIZES", "symmetric contractions from small to large"),
    "resnet50": ("resnet50.OUTPUTS", "a ResNet-50 in batches, its images on the device and on the host"),
    "layers": ("resnet50.LAYERS", "the kernels of every layer of a ResNet-50"),
    "snapshot": ("training.SNAPSHOT", "one snapshot of every layer of a ResNet-18"),
    "spatial": ("contraction.SPATIAL", "outputs with spatial axes, kept on their diagonal or traced"),
    "cka": ("contraction.CKA", "CKA of many examples"),
    "precision": ("precision.PRECISION", "time and error of one product in each precision"),
}
