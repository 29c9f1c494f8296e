"""Wrong input is refused by name, with what was expected and what was found."""

from dataclasses import replace

import numpy as np
import pytest

from agent.search import SearchConfig, SearchEngine, SearchInputError


@pytest.mark.parametrize("name", ["latents", "policy_logits", "values"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_observations_that_are_not_finite_are_named(small_core, random_roots, name, bad) -> None:
    arguments = random_roots(batch=3).arguments
    arguments[name][2, ...] = bad
    with pytest.raises(SearchInputError, match=rf"^{name} has \d+ values that are not finite"):
        SearchEngine(SearchConfig(), small_core()).search(**arguments)


@pytest.mark.parametrize("name", ["phi_w1", "g_bias", "chance_w", "atoms"])
def test_weights_that_are_not_finite_are_named(small_core, name) -> None:
    weights = small_core()
    bad = getattr(weights, name).copy()
    bad.flat[-1] = np.nan
    with pytest.raises(SearchInputError, match=f"^weight {name} has 1 values that are not finite"):
        replace(weights, **{name: bad})


def test_weights_spoilt_after_export_are_noticed_when_loaded(small_core) -> None:
    weights = small_core()
    engine = SearchEngine(SearchConfig(), weights)
    weights.psi_w1[0, 0] = np.inf
    with pytest.raises(SearchInputError, match="weight psi_w1"):
        engine.load(weights)


def test_a_network_that_overflows_is_noticed(small_core, random_roots) -> None:
    weights = small_core()
    huge = np.float32(1e30)
    engine = SearchEngine(SearchConfig(), replace(weights, g_w1=weights.g_w1 * huge, g_w2=weights.g_w2 * huge))
    with pytest.raises(SearchInputError, match=r"root_value has \d+ values that are not finite"):
        engine.search(**random_roots(batch=3).arguments)


@pytest.mark.parametrize("name", ["reward_w", "phi_b2", "value_b"])
def test_weights_of_the_wrong_shape_are_named(small_core, name) -> None:
    weights = small_core()
    array = getattr(weights, name)
    with pytest.raises(SearchInputError, match=rf"weight {name} must be .* found float32 of shape"):
        replace(weights, **{name: np.zeros((array.shape[0] + 1, *array.shape[1:]), np.float32)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latents": np.zeros((3, 5))}, r"latents must have shape \[B, L\] = \(3, 12\); found \(3, 5\)"),
        ({"policy_logits": np.zeros((3, 4))}, r"policy_logits must have shape \[B, A\] = \(3, 3\); found \(3, 4\)"),
        ({"action_mask": np.ones((1, 3))}, r"action_mask must have shape"),
        ({"action_mask": np.array([[1, 1, 1], [0, 0, 0], [1, 0, 0]])}, "action_mask allows no action in row 1"),
        ({"seeds": np.arange(2)}, r"seeds must have shape \[B\] = \(3,\)"),
        ({"to_play": [0, 1, 0]}, r"to_play must hold players in \[0, 1\)"),
        ({"simulations": -1}, "simulations must not be negative"),
        ({"root_noise": np.zeros((3, 2))}, "root_noise must have shape"),
        ({"root_noise": np.zeros((3, 3))}, "root_noise of a puct root must be shares"),
        ({"values": 0.0}, r"must have shape"),
    ],
)
def test_arguments_of_the_wrong_shape_are_named(small_core, random_roots, change, message) -> None:
    arguments = random_roots(batch=3).arguments | change
    with pytest.raises(SearchInputError, match=message):
        SearchEngine(SearchConfig(), small_core()).search(**arguments)


@pytest.mark.parametrize(
    ("options", "explore", "reason"),
    [({}, True, "exploration noise"), ({"chance_selection": "sampled"}, False, "sampled")],
)
def test_randomness_needs_seeds(small_core, random_roots, options, explore, reason) -> None:
    arguments = random_roots(batch=3).arguments | {"seeds": None}
    with pytest.raises(SearchInputError, match=f"seeds are needed because .*{reason}"):
        SearchEngine(SearchConfig(**options), small_core()).search(**arguments, explore=explore)


def test_tables_that_point_nowhere_are_refused(bandit) -> None:
    model = bandit([0.0, 1.0])
    with pytest.raises(SearchInputError, match=r"state_of must point into \[0, 2\)"):
        replace(model, state_of=model.state_of + 5)
