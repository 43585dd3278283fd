"""Learning-rate schedule: warm-up, then polynomial decay to zero.

One formula covers every published recipe of the family (CoinCheung/BiSeNet 2019, 2020 and
@6b4b67a, STDC-Seg, BiSeSTDC and PaddleSeg's polynomial decay with or without linear warm-up);
only the constants of ScheduleConfig differ. The 2020 and 2019 recipes give an absolute start rate
of 1e-5: that is a warmup_ratio of 1e-5 / base_lr.
"""

from __future__ import annotations

from common.config_sections import ScheduleConfig


def lr_factor(iteration: int, schedule: ScheduleConfig) -> float:
    """Return the factor on the base rate for the optimizer step of one iteration.

    Args:
        iteration: 0-based number of the optimizer step that uses the rate.
        schedule: warm-up and decay constants.

    Returns:
        Factor in [0, 1]; exactly 1 at ``warmup_iters``, 0 from ``max_iters`` on.

    Raises:
        ValueError: iteration is negative.
    """
    if iteration < 0:
        raise ValueError(f"iteration is {iteration}; expected 0 for the first optimizer step")
    if iteration < schedule.warmup_iters:
        return _warmup_factor(iteration / schedule.warmup_iters, schedule)
    decayed = iteration - schedule.warmup_iters
    total = schedule.max_iters - schedule.warmup_iters
    # the scheduler is also asked for the rate after the last step; a negative base would turn
    # the power into a complex number
    return max(0.0, 1 - decayed / total) ** schedule.power


def _warmup_factor(progress: float, schedule: ScheduleConfig) -> float:
    ratio = schedule.warmup_ratio
    if schedule.warmup == "exp":
        return ratio ** (1 - progress)
    if schedule.warmup == "linear":
        return ratio + (1 - ratio) * progress
    return ratio
