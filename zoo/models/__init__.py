"""The same networks in one file for each framework, with the same sizes, layer names and initial distributions."""

MLP_WIDTHS = (256, 256)
CNN_CHANNELS = (32, 64)
CNN_WIDTH = 64
