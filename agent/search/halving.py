"""Sequential halving as a schedule of visit counts (Danihelka et al. 2022, fig. 1; Karnin et al. 2013)."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


def considered_visits(actions: int, simulations: int) -> list[int]:
    """For each simulation at the root, how often the action to take must have been visited before.

    `actions` candidates start level. A phase visits every candidate equally often, then drops the worse half
    of them; the last two are kept until the budget is spent. Among the actions with the visit count asked for, the
    search takes the one with the best score, which is how the worse half is dropped.

    Returns `simulations` counts.
    """
    if actions <= 1:
        return list(range(simulations))
    phases = int(np.ceil(np.log2(actions)))
    schedule: list[int] = []
    level, candidates = 0, actions
    while len(schedule) < simulations:
        rounds = max(1, simulations // (phases * candidates))
        for _ in range(rounds):
            schedule.extend([level] * candidates)
            level += 1
        candidates = max(2, candidates // 2)
    return schedule[:simulations]


@lru_cache(maxsize=64)
def halving_table(max_actions: int, simulations: int) -> NDArray[np.int32]:
    """Schedules for 0..max_actions candidates as one table [max_actions + 1, simulations]."""
    rows = [considered_visits(actions, simulations) for actions in range(max_actions + 1)]
    table = np.asarray(rows, dtype=np.int32).reshape(max_actions + 1, simulations)
    table.setflags(write=False)
    return table
