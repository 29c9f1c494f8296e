"""People at the keyboard, and checkpoints, as players of recorded episodes (agent/demonstrations.py).

Everything here plays a vector of one environment and speaks in lines of text.
"""

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from agent.demonstrations import Choose, StopRecording
from agent.planner import Planner
from agent.policy import Observations
from agent.spaces import AdaptedVectorEnv, VectorEnv, action_count, action_factors

Write = Callable[[str], None]


def action_names(env: VectorEnv) -> tuple[str, ...]:
    """What the actions are called: the environment's own `action_names`, else what they do, else their numbers.

    Raises ValueError where an action has parts: there is no list of those to choose from.
    """
    if action_factors(env.single_action_space):
        raise ValueError(
            f"action space {env.single_action_space}: expected actions that are one choice to pick from, found parts. "
            f"Set agent.search.samples so high that all combinations are weighed"
        )
    count = action_count(env.single_action_space)
    own = getattr(_single(env), "action_names", None) or getattr(env.unwrapped, "action_names", None)
    if own is not None and len(own) == count:
        return tuple(str(name) for name in own)
    if isinstance(env, AdaptedVectorEnv):
        return tuple(env.actions.name(action) for action in range(count))
    return tuple(str(action) for action in range(count))


def board(env: VectorEnv, observations: Observations) -> str:
    """What there is to see: the text an environment renders, else its observation in numbers."""
    single = _single(env)
    if single is not None and getattr(single, "render_mode", None) == "ansi":
        return str(single.render())
    draw = getattr(env.unwrapped, "draw_board", None)
    if callable(draw):
        return str(draw(0))
    with np.printoptions(precision=3, suppress=True, threshold=40):
        return "\n".join(f"{name}: {np.asarray(entry[0])}" for name, entry in observations.items())


def _single(env: VectorEnv) -> gym.Env[Any, Any] | None:
    inner = env.unwrapped
    single: gym.Env[Any, Any] | None = inner.envs[0].unwrapped if isinstance(inner, gym.vector.SyncVectorEnv) else None
    return single


def from_keyboard(
    env: VectorEnv,
    *,
    read: Callable[[str], str] = input,
    write: Write = print,
    describe: Callable[[dict[str, Any]], str] | None = None,
) -> Choose:
    """A person who types the name (or the number) of an action, `q` or the end of input to stop.

    describe: what to show of the infos, beside the board.
    """
    names = action_names(env)
    numbered = {str(number): number for number in range(len(names))}
    known = numbered | {name: number for number, name in enumerate(names)}

    def choose(observations: Observations, mask: NDArray[np.bool_], infos: dict[str, Any]) -> NDArray[np.int64]:
        write("")
        write(board(env, observations) if describe is None else describe(infos))
        legal = [number for number in range(len(names)) if mask[0, number]]
        offered = "  ".join(
            names[number]
            if names[number] in known and known[names[number]] == number
            else f"{number} = {names[number]}"
            for number in legal
        )
        while True:
            try:
                typed = read(f"[{offered}  q] ").strip()
            except EOFError as end:
                raise StopRecording from end
            if typed == "q":
                raise StopRecording
            action = known.get(typed)
            if action in legal:
                return np.array([action], np.int64)
            write(f"{typed!r}: expected one of those in brackets, found {'a forbidden action' if action else 'none'}")

    return choose


def from_planner(
    env: VectorEnv, planner: Planner, *, simulations: int | None = None, write: Write | None = None
) -> Choose:
    """A checkpoint that plays its best and, with `write`, says what it thinks."""

    def choose(observations: Observations, mask: NDArray[np.bool_], infos: dict[str, Any]) -> NDArray[np.int64]:
        result, _ = planner.plan(observations, action_mask=mask, simulations=simulations)
        chosen = result.chosen(result.action)
        if write is not None:
            write("")
            write(board(env, observations))
            names = None if action_factors(env.single_action_space) else action_names(env)
            named = names[int(chosen[0])] if names is not None else str(chosen[0])
            write(f"plays {named}, expects {float(result.root_value[0]):+.3f}")
        return chosen

    return choose


def in_turns(players: Sequence[Choose]) -> Choose:
    """Several who take turns: the environment says by infos["to_play"] whose it is."""

    def choose(observations: Observations, mask: NDArray[np.bool_], infos: dict[str, Any]) -> NDArray[np.int64]:
        if "to_play" not in infos:
            raise ValueError(
                'playing in turns needs an environment that says whose turn it is: expected infos["to_play"], found '
                f"{sorted(name for name in infos if not name.startswith('_'))}"
            )
        return players[int(infos["to_play"][0])](observations, mask, infos)

    return choose
