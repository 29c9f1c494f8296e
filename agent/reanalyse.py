"""Searches stored observations anew with the present weights (MuZero Unplugged, Schrittwieser et al. 2021)."""

import numpy as np

from agent.planner import Planner
from agent.replay import Replay


def reanalyse(replay: Replay, planner: Planner, count: int, rng: np.random.Generator) -> None:
    """Refresh policy and root value of `count` stored records, in place: fresher targets for whoever samples them.

    The search is the quiet one: exploration noise belongs to the acting, not to the target.
    """
    rows, columns = replay.draw_records(count, rng)
    observations, mask = replay.read(rows, columns)
    result, _ = planner.plan(observations, action_mask=mask)
    replay.refresh(rows, columns, result.action_weights, result.root_value)
