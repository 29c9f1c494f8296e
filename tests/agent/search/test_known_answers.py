"""Answers known beforehand: by hand, by symmetry, or from the literature."""

import math

import numpy as np
import pytest

from agent.search import SearchConfig, SearchEngine, TableModel
from agent.search.halving import considered_visits
from agent.search.reference import search_reference


def test_gumbel_bandit_is_visited_as_in_mctx(bandit) -> None:
    """mctx's own test of its Gumbel policy (policies_test.py): visits [6, 2, 2, 7], then the fourth arm.

    The noise is what jax draws there: jax.random.gumbel of the second half of split(PRNGKey(0)).
    """
    model = bandit([20.0, 3.0, -1.0, 10.0])
    config = SearchConfig(
        simulations=17, root="gumbel", discount=0.0, gumbel_value_scale=0.05, gumbel_visit_offset=60.0
    )
    noise = [[1.9914981, 0.2056251, -0.24954943, 1.4269422]]
    arguments = {"latents": [[0.0]], "policy_logits": [[0.0, -1.0, 2.0, 3.0]], "values": [-5.0], "root_noise": noise}
    for result in (
        SearchEngine(config, model).search(**arguments),
        search_reference(config, model, **arguments).result,
    ):
        assert result.visits.tolist() == [[6, 2, 2, 7]]
        assert result.action.tolist() == [3]
        scaled = (60 + 7) * 0.05 * (np.array([20.0, 3.0, -1.0, 10.0]) + 1.0) / 21.0
        improved = np.exp(np.array([0.0, -1.0, 2.0, 3.0]) + scaled)
        np.testing.assert_allclose(result.action_weights[0], improved / improved.sum(), rtol=1e-5)


def plain_muzero_weights(logits: list[float], root_value: float, allowed: list[bool], simulations: int) -> list[float]:
    """MuZero's PUCT on a bandit whose arms all return 0: visits of the root's arms, as shares."""
    prior = [math.exp(x) if ok else 0.0 for x, ok in zip(logits, allowed, strict=True)]
    prior = [p / sum(prior) for p in prior]
    visits = [0] * len(prior)
    value, count = root_value, 1
    for _ in range(simulations):
        low, high = min(value, 0.0), max(value, 0.0)
        rate = math.sqrt(count) * (1.25 + math.log((count + 19652 + 1) / 19652))
        scores = [
            rate * p / (n + 1) + ((0.0 - low) / max(high - low, 1e-8) if n else 0.0) if ok else -math.inf
            for p, n, ok in zip(prior, visits, allowed, strict=True)
        ]
        visits[scores.index(max(scores))] += 1
        value, count = value * count / (count + 1), count + 1
    return [n / simulations for n in visits]


def test_dummy_chance_nodes_and_twice_the_simulations_are_plain_muzero(bandit) -> None:
    """With outcomes that never differ, two simulations with chance nodes do the work of one without (mctx's test)."""
    logits = [[-1.0, 0.0, 2.0, 3.0], [0.0, 2.0, 5.0, -4.0]]
    allowed = [[True, True, True, False], [False, True, False, True]]
    values = [1.0, 0.0]
    expected = [plain_muzero_weights(*row, simulations=10) for row in zip(logits, values, allowed, strict=True)]
    engine = SearchEngine(SearchConfig(discount=0.0, simulations=20), bandit([0.0] * 4, codes=5))
    result = engine.search([[0.0], [0.0]], logits, values, action_mask=allowed)
    np.testing.assert_allclose(result.action_weights, expected, atol=1e-6)


def outcome_model(probabilities: list[float]) -> TableModel:
    """One action, and these outcomes."""
    codes = len(probabilities)
    return TableModel(
        afterstate_of=np.zeros((1, 1), np.int32),
        state_of=np.zeros((1, codes), np.int32),
        policy_logits=np.zeros((1, 1), np.float32),
        values=np.zeros(1, np.float32),
        chance_logits=np.log(np.array([probabilities], np.float32)),
        afterstate_values=np.zeros(1, np.float32),
        rewards=np.zeros((1, codes), np.float32),
    )


def root_outcome_visits(config: SearchConfig, probabilities: list[float]) -> np.ndarray:
    model = outcome_model(probabilities)
    result = SearchEngine(config, model).search(*model.roots([0]), seeds=[7], with_tree=True)
    assert result.trees is not None
    visits = np.zeros(len(probabilities))
    for node in result.trees.nodes(0):
        if node.parent == 1:
            visits[node.edge] = node.visits
    return visits


def test_chance_visits_approach_the_prior() -> None:
    """argmax Pr/(N+1) keeps every outcome within one visit or so of its share."""
    probabilities = [0.5, 0.3, 0.15, 0.05]
    visits = root_outcome_visits(SearchConfig(simulations=2000, discount=0.0), probabilities)
    assert visits.sum() == 1999
    assert np.abs(visits - np.array(probabilities) * 1999).max() < 2.0


def test_sampled_chance_visits_approach_the_prior_too() -> None:
    probabilities = np.array([0.5, 0.3, 0.15, 0.05])
    config = SearchConfig(simulations=2000, discount=0.0, chance_selection="sampled")
    visits = root_outcome_visits(config, probabilities.tolist())
    deviation = np.abs(visits - probabilities * visits.sum()) / np.sqrt(
        visits.sum() * probabilities * (1 - probabilities)
    )
    assert deviation.max() < 4.0  # standard deviations
    assert np.abs(visits - probabilities * visits.sum()).max() > 2.0  # sampled, not dealt out


@pytest.mark.parametrize(
    ("actions", "simulations", "expected"),
    [
        (1, 4, [0, 1, 2, 3]),
        (2, 5, [0, 0, 1, 1, 2]),
        (4, 8, [0, 0, 0, 0, 1, 1, 2, 2]),
        (4, 16, [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]),
        (16, 5, [0] * 5),
    ],
)
def test_halving_spends_equal_budgets_on_half_as_many_actions(actions, simulations, expected) -> None:
    assert considered_visits(actions, simulations) == expected


def test_discount_applies_to_the_step_in_the_world_only(chain) -> None:
    """s0 → (action, no reward, no discount) → afterstate → (outcome, reward 0.5, discount 0.9) → s1."""
    model = chain(values=[1.0, 3.0, 0.0], afterstate_values=[2.0, 0.0, 0.0], rewards=[0.5, 0.0, 0.0])
    engine = SearchEngine(SearchConfig(discount=0.9), model)
    one = engine.search(*model.roots([0]), simulations=1)
    assert one.root_value[0] == pytest.approx((1.0 + 2.0) / 2)
    two = engine.search(*model.roots([0]), simulations=2)
    outcome = 0.5 + 0.9 * 3.0
    assert two.q_values[0, 0] == pytest.approx((2.0 + outcome) / 2)
    assert two.root_value[0] == pytest.approx((1.0 + 2.0 + outcome) / 3)
    assert two.depth[0] == 1


@pytest.mark.parametrize(("players", "signs"), [(1, [1, 1, 1]), (2, [1, -1, 1]), (3, [1, -1, -1])])
def test_values_count_for_their_player_and_against_the_others(chain, players, signs) -> None:
    """One line of play, one decision per player: value 3 is the second mover's, value 5 the third's."""
    model = chain(values=[1.0, 3.0, 5.0, 0.0], afterstate_values=[0.0] * 4, rewards=[0.5, 0.25, 0.0, 0.0])
    engine = SearchEngine(SearchConfig(discount=0.9, players=players, simulations=4), model)
    result = engine.search(*model.roots([0]), to_play=[players - 1])
    # The root's mean: its own value, two afterstates worth 0, and the two states reached. Rewards belong to the
    # player who acted: 0.5 to the first, 0.25 to the second.
    first = 0.5 + 0.9 * signs[1] * 3.0
    second = 0.5 + 0.9 * (signs[1] * 0.25 + 0.9 * signs[2] * 5.0)
    third_afterstate = 0.5 + 0.9 * 0.0
    assert result.root_value[0] == pytest.approx((1.0 + 0.0 + first + third_afterstate + second) / 5)


def test_an_expected_afterstate_by_hand() -> None:
    """One action, two outcomes of probability 0.6 and 0.4 that pay 1 and −1 and lead to states worth 2 and −2; γ = ½.

    The action by itself is worth 0.3. With the likelier outcome looked at (0.6⁴ = 0.1296 of the weight) it is worth
    0.8704 · 0.3 + 0.1296 · (1 + ½ · 2) = 0.52032, with both 0.6 · 2 + 0.4 · (−2) = 0.4; the means are 1.15 and 0.1.
    """
    model = TableModel(
        afterstate_of=np.zeros((3, 1), np.int32),
        state_of=np.array([[1, 2]], np.int32),
        policy_logits=np.zeros((3, 1), np.float32),
        values=np.array([0.0, 2.0, -2.0], np.float32),
        chance_logits=np.log(np.array([[0.6, 0.4]], np.float32)),
        afterstate_values=np.array([0.3], np.float32),
        rewards=np.array([[1.0, -1.0]], np.float32),
    )
    for values, wanted in (("expected", (0.3, 0.52032, 0.4)), ("mean", (0.3, 1.15, 0.1))):
        config = SearchConfig(discount=0.5, chance_values=values, precision="float64")
        for simulations, q in enumerate(wanted, start=1):
            asked = {"simulations": simulations}
            for result in (
                SearchEngine(config, model).search(*model.roots([0]), **asked),
                search_reference(config, model, *model.roots([0]), **asked).result,
            ):
                assert result.q_values[0, 0] == pytest.approx(q, abs=1e-6)


def test_a_change_of_an_outcome_counts_by_its_probability() -> None:
    """Three even outcomes, one of them looked at and worth 4 instead of 1 after looking further; γ = ½."""
    model = TableModel(
        afterstate_of=np.array([[0], [1], [1], [1], [1]], np.int32),
        state_of=np.array([[1, 2, 3], [4, 4, 4]], np.int32),
        policy_logits=np.zeros((5, 1), np.float32),
        values=np.array([0.0, 1.0, 0.0, 0.0, 0.0], np.float32),
        chance_logits=np.zeros((2, 3), np.float32),
        afterstate_values=np.array([0.6, 7.0], np.float32),
        rewards=np.zeros((2, 3), np.float32),
    )
    # The second simulation looks at outcome 0 (worth 1 by itself), the third and fourth at the others, and the fifth
    # goes on below outcome 0: its state is now worth (1 + 7)/2 = 4.
    config = SearchConfig(discount=0.5, chance_values="expected", precision="float64", simulations=5)
    result = SearchEngine(config, model).search(*model.roots([0]))
    assert result.q_values[0, 0] == pytest.approx(0.5 * 4.0 / 3.0)
    two = SearchEngine(config, model).search(*model.roots([0]), simulations=2)
    share = (1.0 / 3.0) ** 4
    assert two.q_values[0, 0] == pytest.approx((1.0 - share) * 0.6 + share * 0.5)
