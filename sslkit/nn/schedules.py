"""Values that change over the course of training."""

import math


def cosine(start: float, end: float, progress: float) -> float:
    """Half a cosine from `start` to `end` (Loshchilov and Hutter 2017, Eq. 5); progress: 0 to 1."""
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2
