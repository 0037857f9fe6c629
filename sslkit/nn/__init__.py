"""Building blocks of methods: losses, heads, momentum encoders, queues, memory banks, health of features."""

from typing import TYPE_CHECKING

from sslkit.plugins import lazy_names

if TYPE_CHECKING:
    from sslkit.nn.banks import MemoryBank
    from sslkit.nn.collapse import collapse_warning
    from sslkit.nn.colour import rgb_to_lab
    from sslkit.nn.heads import mlp
    from sslkit.nn.health import effective_rank, feature_std
    from sslkit.nn.losses import byol, full_precision, info_nce, margin, nt_logistic, nt_xent
    from sslkit.nn.modes import eval_mode, own_random
    from sslkit.nn.momentum import cosine_momentum, ema_update, momentum_encoder
    from sslkit.nn.queues import Queue
    from sslkit.nn.schedules import cosine

__all__ = [
    "MemoryBank",
    "Queue",
    "byol",
    "collapse_warning",
    "cosine",
    "cosine_momentum",
    "effective_rank",
    "ema_update",
    "eval_mode",
    "feature_std",
    "full_precision",
    "info_nce",
    "margin",
    "mlp",
    "momentum_encoder",
    "nt_logistic",
    "nt_xent",
    "own_random",
    "rgb_to_lab",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "MemoryBank": "sslkit.nn.banks",
        "Queue": "sslkit.nn.queues",
        "byol": "sslkit.nn.losses",
        "collapse_warning": "sslkit.nn.collapse",
        "cosine": "sslkit.nn.schedules",
        "cosine_momentum": "sslkit.nn.momentum",
        "effective_rank": "sslkit.nn.health",
        "ema_update": "sslkit.nn.momentum",
        "eval_mode": "sslkit.nn.modes",
        "feature_std": "sslkit.nn.health",
        "full_precision": "sslkit.nn.losses",
        "info_nce": "sslkit.nn.losses",
        "margin": "sslkit.nn.losses",
        "mlp": "sslkit.nn.heads",
        "momentum_encoder": "sslkit.nn.momentum",
        "nt_logistic": "sslkit.nn.losses",
        "nt_xent": "sslkit.nn.losses",
        "own_random": "sslkit.nn.modes",
        "rgb_to_lab": "sslkit.nn.colour",
    },
)
