"""Signs of collapse in a batch of features: how widely and in how many directions they spread."""

import torch
from torch import Tensor
from torch.nn import functional as F


@torch.no_grad()
def feature_std(features: Tensor) -> Tensor:
    """Spread of the directions of features [N, D] (SimSiam: Chen and He 2021, 4.1 and Figure 2), as a scalar.

    The standard deviation over rows of the L2-normalised features, averaged over the D dimensions, times √D:
    1 if they spread evenly over the sphere, 0 if all point in one direction.
    """
    unit = F.normalize(features.float(), dim=1)
    out: Tensor = unit.std(0, correction=0).mean() * features.shape[1] ** 0.5
    return out


@torch.no_grad()
def effective_rank(features: Tensor, rows: int = 256) -> Tensor:
    """Number of directions in which features [N, D] vary: 1 to min(N - 1, D), and 0 if nothing varies.

    The exponential of the entropy of the normalised singular values (Roy and Vetterli 2007; RankMe: Garrido
    et al. 2023, Eq. 1). Unlike in RankMe the mean is subtracted first, so that only variation counts,
    and only the first `rows` rows are used: their Gram matrix costs milliseconds. Returns a float64 scalar on
    the CPU.
    """
    some = features[:rows].float().cpu().double()
    centred = some - some.mean(0)
    singular = torch.linalg.eigvalsh(centred @ centred.T).clamp_min(0).sqrt()
    # Rounding errors of float32 features must not count as variation.
    singular = singular.where(singular > 1e-6 * some.norm(), 0)
    total = singular.sum()
    rank: Tensor = torch.special.entr(singular / total).sum().exp() if total > 0 else singular.new_zeros(())
    return rank
