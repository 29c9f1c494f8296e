"""Old experience in the light of new weights, and the same past lived differently."""

from collections import deque
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from agent.planner import Planner
from agent.policy import Observations
from agent.replay import Record, Replay
from agent.self_play import SelfPlay, value_of
from agent.spaces import allowed_choices, random_choices


def reanalyse(replay: Replay, planner: Planner, count: int, rng: np.random.Generator) -> None:
    """Search `count` stored records anew and refresh their policy and root value in place: fresher targets for whoever
    samples them (MuZero Unplugged, Schrittwieser et al. 2021).

    The search is the quiet one: exploration noise belongs to the acting, not to the target.
    """
    rows, columns = replay.draw_records(count, rng)
    observations, mask = replay.read(rows, columns)
    # Where candidates are drawn, others each time: the same seed would look at the same few combinations for ever.
    drawn = bool(planner.model.action_factors)
    seeds = rng.integers(0, 2**63, size=count, dtype=np.uint64) if drawn else None
    result, _ = planner.plan(observations, action_mask=mask, seeds=seeds)
    target = result.policy_target(planner.model.action_factors)
    replay.refresh(rows, columns, target, value_of(result, replay.config))


@runtime_checkable
class Resumable(Protocol):
    """A vector environment whose position can be saved: a resumed run goes on mid-episode."""

    def get_state(self) -> Any:
        """An array, or a tuple of arrays."""

    def set_state(self, state: Any) -> None:
        """Take up what `get_state` gave."""


def offers_counterfactuals(env: Any) -> bool:
    """Whether the environment says that a state set back meets the same chance again, whatever is done in it."""
    return isinstance(env, Resumable) and bool(getattr(env, "counterfactual", False))


class Sink(Protocol):
    """Takes records as a replay does."""

    def add(self, record: Record) -> None:
        """Append one record per row."""

    def cut(self) -> None:
        """End every row's episode at its newest record."""


class Moment(NamedTuple):
    """Where every row of the real environments stood: enough to start again from there."""

    state: Any
    observations: Observations
    mask: NDArray[np.bool_]
    finished: NDArray[np.bool_]


class SecondLives:
    """Stored moments lived again under other actions, in an environment of their own (agent.md, "Learning").

    Prices do not react to a small trader, so the same bars with other positions are also true experience, with exact
    rewards. Each second life begins with a uniformly random action, kept for some steps (Dabney et al. 2021: what a
    persistent choice leads to is not found by choosing anew at every step): positions that the policy has stopped
    taking are looked at again with the values of today.
    """

    def __init__(self, actor: SelfPlay, *, states: int, length: int, hold: int = 1) -> None:
        """actor: over an environment of its own that offers counterfactuals. states: moments kept. length: steps of a
        second life. hold: most steps that its first action is kept."""
        self.actor = actor
        self.length = length
        self.hold = hold
        self.moments: deque[Moment] = deque(maxlen=states)
        self.steps = 0

    def remember(self, original: SelfPlay) -> None:
        """Keep where the original actor stands now."""
        state = original.env.get_state()  # type: ignore[attr-defined]
        self.moments.append(Moment(state, original.observations, original.mask, original.finished))

    def relive(self, replay: Sink) -> None:
        """Live one stored moment again, drawn uniformly, and add what happens to `replay` as episodes of its own."""
        actor = self.actor
        moment = self.moments[int(actor.rng.integers(len(self.moments)))]
        actor.env.set_state(moment.state)  # type: ignore[attr-defined]
        actor.observations, actor.mask, actor.finished = moment.observations, moment.mask, moment.finished
        before = actor.env_steps
        first = random_choices(actor.mask, actor.factors, actor.rng)
        kept = 1 if self.hold == 1 else int(actor.rng.integers(self.hold)) + 1
        for step in range(self.length):
            forced = None
            if step < kept:
                forced = first
                allowed = allowed_choices(first, actor.mask, actor.factors)
                if not allowed.all():
                    forced = random_choices(actor.mask, actor.factors, actor.rng)
                    forced[allowed] = first[allowed]
            replay.add(actor.step(forced))
        replay.cut()
        actor.returns.clear()
        self.steps += actor.env_steps - before
