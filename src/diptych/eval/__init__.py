"""Numbers people can trust: metrics with intervals, sets with protocols, runs and their reports.

A metric is an entry of the dict that `retrieval`, `zero_shot` or `geometry` returns; runs log it,
draw it and can keep the best model by it, without being told.
"""

__all__ = ["less_is_better"]


def less_is_better(metric: str) -> bool:
    """Whether a smaller value of this metric is a better one: ranks, losses, distances."""
    small = metric.endswith(("rank", "loss", "gap"))
    return small or metric.startswith(("alignment", "uniformity"))
