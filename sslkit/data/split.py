"""Holding out a part of labelled images."""

import numpy as np
from numpy.typing import NDArray


def stratified_split(
    labels: NDArray[np.int64], seed: int, fraction: float = 0.2
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(rest, held out), sorted row numbers; ⌈n × fraction⌉ of n known labels held out, stratified.

    A pure function of its arguments. Rows labelled -1 are in neither part; a class of one image stays in
    the rest.
    """
    known = np.flatnonzero(labels >= 0)
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, 0x5B117])))
    counts = np.unique(labels[known], return_counts=True)[1]
    # One sorting for all classes: with thousands of them, one pass over the labels each would take minutes.
    by_class = np.split(known[np.argsort(labels[known], kind="stable")], np.cumsum(counts)[:-1])
    taken = [
        generator.permutation(rows)[:n]
        for rows, n in zip(by_class, _apportion(counts, int(np.ceil(len(known) * fraction))))
    ]
    held_out = np.sort(np.concatenate([np.empty(0, np.int64), *taken]))
    return np.setdiff1d(known, held_out), held_out


def _apportion(counts: NDArray[np.int64], total: int) -> NDArray[np.int64]:
    """`total` places by largest remainder; every class keeps one image."""
    shares = counts * (total / max(counts.sum(), 1))
    places = np.floor(shares).astype(np.int64)
    largest_first = np.argsort(places - shares, kind="stable")
    places[largest_first[: total - places.sum()]] += 1
    result: NDArray[np.int64] = np.minimum(places, counts - 1)
    return result
