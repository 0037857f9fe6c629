"""Stratified splits of labelled images."""

import numpy as np
from numpy.typing import NDArray


def stratified_split(
    labels: NDArray[np.int64], seed: int, fraction: float = 0.2
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return (rest, held out), sorted row numbers; ⌈n × fraction⌉ of n known labels are held out, stratified.

    A pure function of its arguments. Rows labelled -1 are in neither part; the image of a class with only one stays in
    the rest.
    """
    known = np.flatnonzero(labels >= 0)
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, 0x5B117])))
    counts = np.unique(labels[known], return_counts=True)[1]
    # One sort for all classes: with thousands of classes, one pass over the labels per class would take minutes.
    by_class = np.split(known[np.argsort(labels[known], kind="stable")], np.cumsum(counts)[:-1])
    chosen = [
        generator.permutation(rows)[:n]
        for rows, n in zip(by_class, _apportion(counts, int(np.ceil(len(known) * fraction))))
    ]
    held_out = np.sort(np.concatenate([np.empty(0, np.int64), *chosen]))
    return np.setdiff1d(known, held_out), held_out


def _apportion(counts: NDArray[np.int64], total: int) -> NDArray[np.int64]:
    """Distribute `total` places by largest remainder; every class keeps one image in the rest."""
    shares = counts * (total / max(counts.sum(), 1))
    places = np.floor(shares).astype(np.int64)
    largest_first = np.argsort(places - shares, kind="stable")
    places[largest_first[: total - places.sum()]] += 1
    result: NDArray[np.int64] = np.minimum(places, counts - 1)
    return result
