"""The verdict on collapse, from figures of `health`; needs no torch, so that reports of finished runs need none."""

COLLAPSED_STD = 0.02
"""Threshold of feature_std below which all images share one direction: mean cosine similarity over 0.999."""
COLLAPSED_RANK = 2.0
"""Threshold of effective_rank below which (if the width allows more) the features lie close to a line."""


def collapse_warning(std: float, rank: float, width: int) -> str | None:
    """Describe a collapse and its remedies, or return None. `std` and `rank` are as above; `width` is D.

    The thresholds are low, because they must catch collapse and not slow learning: random networks without
    batch norm already start near std 0.1. Networks that end in batch norm keep their std up in training mode;
    for them the rank falls.
    """
    remedy = (
        "try a lower optimizer.lr, a longer optimizer.warmup_epochs, a larger batch_size, "
        "stronger augmentation, or another method"
    )
    if std < COLLAPSED_STD:
        return f"the features have collapsed to one point (feature_std {std:.2g}, healthy: above 0.1); {remedy}"
    if width > COLLAPSED_RANK and rank < COLLAPSED_RANK:
        return (
            f"the features have collapsed to a line (effective_rank {rank:.1f} of a width of {width}, "
            f"healthy: above 10); {remedy}"
        )
    return None
