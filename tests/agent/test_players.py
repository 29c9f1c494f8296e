"""Players who take turns: whose return a target is, by hand; and what the trainer insists on."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from agent.evaluation import calibrate
from agent.search import SearchConfig, SearchEngine, TableModel
from agent.search.reference import search_reference
from agent.spaces import as_seen_first, player_count, require_players
from agent.targets import corrected_returns, n_step_returns, td_lambda_returns

# Seven steps of two players, γ = ½, three rewards and a bootstrap. Own steps count, the other's count against:
# 1 − ½·2 + ¼·3 − ⅛·40 = −4.25, 2 − ½·3 + ¼·4 − ⅛·50 = −4.75, … 5 − ½·6 + ¼·7 = 3.75, 6 − ½·7 = 2.5, 7.
REWARDS = np.array([[1, 2, 3, 4, 5, 6, 7, 0, 0, 0, 0]], np.float32)
VALUES = np.array([[10, 20, 30, 40, 50, 60, 70, 80, 0, 0, 0]], np.float32)
HAS_TRANSITION = np.arange(11)[None] < 7
TWO_PLAYERS = [-4.25, -4.75, -5.25, -5.75, 3.75, 2.5, 7.0]


def _flags(*, terminates: bool) -> dict[str, Any]:
    return {
        "rewards": REWARDS,
        "root_values": VALUES,
        "has_transition": HAS_TRANSITION,
        "terminated": (np.arange(11)[None] == 6) & terminates,
        "discount": 0.5,
        "n_step": 3,
    }


def test_what_the_other_player_gets_counts_against_the_mover() -> None:
    returns = n_step_returns(**_flags(terminates=True), count=7, players=2)
    np.testing.assert_allclose(returns[0], TWO_PLAYERS, rtol=1e-6)


def test_a_truncated_game_is_bootstrapped_as_the_mover_sees_it() -> None:
    # The last observation is worth 80 to whoever moves there: 5 − 3 + 1.75 − 10, 6 − 3.5 + 20, 7 − 40, and 80 itself.
    returns = n_step_returns(**_flags(terminates=False), count=8, players=2)
    np.testing.assert_allclose(returns[0, 4:], [-6.25, 22.5, -33.0, 80.0], rtol=1e-6)


def test_of_three_players_the_third_step_on_is_ones_own() -> None:
    # 1 − ½·2 − ¼·3 + ⅛·40
    returns = n_step_returns(**_flags(terminates=True), count=1, players=3)
    assert returns[0, 0] == pytest.approx(4.25)


@pytest.mark.parametrize("players", [1, 2, 3])
@pytest.mark.parametrize("terminates", [True, False])
def test_td_lambda_one_is_the_n_step_return_for_any_number_of_players(players: int, terminates: bool) -> None:
    flags = _flags(terminates=terminates)
    whole = td_lambda_returns(**flags, td_lambda=1.0, count=8, players=players)
    np.testing.assert_allclose(whole, n_step_returns(**flags, count=8, players=players), rtol=1e-6)


@pytest.mark.parametrize("players", [1, 2, 3])
def test_with_full_trust_nothing_is_corrected_for_any_number_of_players(players: int) -> None:
    flags = {**_flags(terminates=True), "td_lambda": 0.6, "count": 7, "players": players}
    value, q = corrected_returns(**flags, trust=np.ones((1, 11), np.float32))
    np.testing.assert_allclose(value, td_lambda_returns(**flags), rtol=1e-6)
    np.testing.assert_allclose(q, value, rtol=1e-6)


def test_td_lambda_of_two_players_by_hand() -> None:
    # Horizon two, λ = ½: 1 − ½(½·20 + ½(2 − ½·30)) = 1 − ½·(10 − 6.5) = −0.75
    returns = td_lambda_returns(**{**_flags(terminates=False), "n_step": 2}, td_lambda=0.5, count=1, players=2)
    assert returns[0, 0] == pytest.approx(-0.75)


def test_values_are_calibrated_against_each_players_own_return() -> None:
    # A game of three moves that its first player wins: +1 for moves 0 and 2, −1 for move 1.
    values = np.array([[1.0], [-1.0], [1.0]])
    rewards = np.array([[0.0], [0.0], [1.0]])
    found = calibrate(values, rewards, np.array([3]), np.array([True]), 1.0, players=2)
    assert found is not None
    assert found.bias == 0.0
    assert found.slope == pytest.approx(1.0)


def test_an_episodes_return_is_the_first_movers() -> None:
    step = np.array([0, 1, 2, 3])
    np.testing.assert_array_equal(as_seen_first(np.ones(4), step, 2), [1, -1, 1, -1])
    np.testing.assert_array_equal(as_seen_first(np.ones(4), step, 1), [1, 1, 1, 1])


def _compiled(config: SearchConfig, model: TableModel, *roots: Any) -> Any:
    return SearchEngine(config, model).search(*roots)


def _plain(config: SearchConfig, model: TableModel, *roots: Any) -> Any:
    return search_reference(config, model, *roots).result


@pytest.mark.parametrize("search", [_plain, _compiled])
def test_the_search_expects_the_other_player_to_answer_well(search: Any) -> None:
    """Action 0 wins 1 if the other errs (its action 0) and loses 1 if not; action 1 wins 0.4 whatever is answered.

    States: 0 root, 1 and 2 the other's turn, 3..5 ends. One code. A player alone would take action 0 for its 1.
    """
    model = TableModel(
        afterstate_of=np.array([[0, 1], [2, 3], [4, 4], [5, 5], [5, 5], [5, 5]], np.int32),
        state_of=np.array([[1], [2], [3], [4], [5], [3]], np.int32),
        policy_logits=np.zeros((6, 2)),
        values=np.zeros(6),
        chance_logits=np.zeros((6, 1)),
        afterstate_values=np.zeros(6),
        # The mover of the edge is rewarded: the other gets −1 for erring, 1 for not, −0.4 in the quiet line.
        rewards=np.array([[0.0], [0.0], [-1.0], [1.0], [-0.4], [0.0]]),
    )
    actions = {}
    for players in (1, 2):
        config = SearchConfig(simulations=400, discount=1.0, players=players)
        actions[players] = int(search(config, model, *model.roots([0])).action_weights[0].argmax())
    assert actions == {1: 0, 2: 1}


class _ForTwo(gym.Env[Any, Any]):
    observation_space = gym.spaces.Box(0, 1, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)
    players = 2


def test_an_environment_says_how_many_play() -> None:
    env = gym.vector.SyncVectorEnv([_ForTwo])
    assert player_count(env) == 2
    assert player_count(gym.make_vec("CartPole-v1", num_envs=1, vectorization_mode="sync")) == 1
    with pytest.raises(ValueError, match=r"search.players 1: this environment is played by 2.*Set search.players to 2"):
        require_players(env, 1)
