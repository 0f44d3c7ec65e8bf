"""Kernels as small pictures, in the PNG format."""

from __future__ import annotations

import base64
import struct
import zlib

import numpy as np

# ColorBrewer's RdBu, from blue to red, which colour-blind people can tell apart.
_BLUE_TO_RED = "2166ac 4393c3 92c5de d1e5f0 f7f7f7 fddbc7 f4a582 d6604d b2182b"
_LEVELS = 65
_UNKNOWN = "94a3b8"


def cosines(kernel: np.ndarray) -> np.ndarray:
    """``K_ij / sqrt(K_ii K_jj)``; zero for an example whose features are zero, nan for numbers that are not finite."""
    kernel = np.where(np.isfinite(kernel), kernel, np.nan)
    norm = np.sqrt(np.maximum(np.diagonal(kernel), 0))
    scale = np.divide(1, norm, out=np.zeros_like(norm), where=norm > 0)
    return kernel * scale[:, None] * scale[None, :]


def picture(matrix: np.ndarray, size: int) -> str:
    """A matrix of numbers from -1 (blue) to 1 (red) as the URL of a PNG; nan is grey.

    Args:
        matrix: the numbers, ``(N, N)``.
        size: the most pixels on a side; of a larger matrix, a pixel is the mean of a block.
    """
    small = _blocks(_blocks(matrix, size).T, size).T
    known = np.isfinite(small)
    levels = np.where(known, np.rint((np.clip(np.nan_to_num(small), -1, 1) + 1) / 2 * (_LEVELS - 1)), _LEVELS)
    return f"data:image/png;base64,{base64.b64encode(_png(levels.astype(np.uint8))).decode()}"


def _blocks(matrix: np.ndarray, size: int) -> np.ndarray:
    """The means of at most ``size`` blocks of rows."""
    if len(matrix) <= size:
        return matrix
    starts = np.arange(size) * len(matrix) // size
    return np.add.reduceat(matrix, starts, axis=0) / np.diff([*starts, len(matrix)])[:, None]


def _png(levels: np.ndarray) -> bytes:
    """Levels ``(H, W)`` as a picture with a palette."""
    anchors = np.array([list(bytes.fromhex(color)) for color in _BLUE_TO_RED.split()], float)
    places = np.linspace(0, len(anchors) - 1, _LEVELS)
    channels = [np.interp(places, np.arange(len(anchors)), anchors[:, i]) for i in range(3)]
    palette = np.rint(np.stack(channels, axis=1)).astype(np.uint8).tobytes() + bytes.fromhex(_UNKNOWN)
    height, width = levels.shape
    # Each row begins with the number of its filter, and 0 is none.
    lines = np.pad(levels, ((0, 0), (1, 0))).tobytes()
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)),
        (b"PLTE", palette),
        (b"IDAT", zlib.compress(lines, 9)),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in parts
    )
