"""Pictures of any size as the 84 x 84 gray image that the agents see."""

import numpy as np

SIDE = 84
LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def gray(rgb: np.ndarray) -> np.ndarray:
    """(h, w, 3) uint8 -> (h, w) float32 luma."""
    return LUMA[0] * rgb[..., 0] + LUMA[1] * rgb[..., 1] + LUMA[2] * rgb[..., 2]


def shrink(image: np.ndarray) -> np.ndarray:
    """(h, w) -> (84, 84) uint8: each pixel is the mean of the area that it covers."""
    return np.rint(_means(_means(image).T).T).astype(np.uint8)


def _means(image: np.ndarray) -> np.ndarray:
    """(h, w) -> (84, w) float32: differences of the column sums up to each new pixel's edges.

    Not a matrix product: its threads would cost far more than they calculate.
    """
    height = len(image)
    sums = np.zeros((height + 1, image.shape[1]), np.float32)
    np.cumsum(image, axis=0, out=sums[1:])
    edges = np.linspace(0, height, SIDE + 1)
    whole = np.minimum(edges.astype(int), height - 1)
    part = (edges - whole).astype(np.float32)[:, None]
    at_edges = sums[whole] + part * (sums[whole + 1] - sums[whole])
    return np.diff(at_edges, axis=0) * (SIDE / height)
