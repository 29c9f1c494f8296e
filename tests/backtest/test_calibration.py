"""Predictions against what came, on cases whose answer is known."""

import numpy as np
import pytest
from scipy.stats import norm

from backtest.calibration import (
    QUADRATURE,
    CodeOutcomes,
    code_outcomes,
    crps_of_quantiles,
    discounted_future,
    mixture_cdf,
    mixture_quantiles,
    normal_quantiles,
    value_calibration,
)

LEVELS = np.array([0.05, 0.25, 0.5, 0.75, 0.95])


def codes(*centres: float, spread: float = 0.01) -> CodeOutcomes:
    return CodeOutcomes(LEVELS, np.stack([centre + spread * norm.ppf(LEVELS) for centre in centres]))


def test_discounted_future_by_hand() -> None:
    assert discounted_future(np.array([1.0, 2.0, 4.0]), 0.5).tolist() == [3.0, 4.0, 4.0]


def test_perfect_predictions_lie_on_the_diagonal() -> None:
    predicted = np.random.default_rng(0).normal(size=200)
    bins, correlation = value_calibration(predicted, 2.0 * predicted)
    assert correlation == pytest.approx(1.0)
    assert sum(count for _, _, count in bins) == 200
    for expected, realised, _ in bins:
        assert realised == pytest.approx(2.0 * expected)


def test_constant_predictions_have_no_calibration() -> None:
    assert value_calibration(np.zeros(100), np.arange(100.0)) == ((), None)


def test_mixture_of_codes_is_half_at_its_median() -> None:
    both = codes(-0.02, 0.02)
    assert mixture_cdf(np.zeros(1), np.array([[0.5, 0.5]]), both)[0] == pytest.approx(0.5)
    assert mixture_cdf(np.array([-0.02]), np.array([[1.0, 0.0]]), both)[0] == pytest.approx(0.5)


def test_codes_never_seen_in_training_are_left_out_of_the_mixture() -> None:
    known = code_outcomes([0], [{"0.05": -1.0, "0.5": 0.0, "0.95": 1.0}], 2)
    assert mixture_cdf(np.zeros(1), np.array([[0.1, 0.9]]), known)[0] == pytest.approx(0.5)


def test_probability_integral_transform_of_the_truth_is_uniform() -> None:
    outcome = np.random.default_rng(1).normal(0.0, 0.01, 20_000)
    pit = mixture_cdf(outcome, np.ones((20_000, 1)), codes(0.0))
    counts, _ = np.histogram(pit, bins=5, range=(0, 1))
    assert counts / 20_000 == pytest.approx(np.full(5, 0.2), abs=0.02)


def test_quantiles_invert_the_distribution_function() -> None:
    weights = np.array([[0.3, 0.7]])
    found = mixture_quantiles(weights, codes(-0.02, 0.01))
    assert mixture_cdf(found[0], np.repeat(weights, len(QUADRATURE), axis=0), codes(-0.02, 0.01)) == pytest.approx(
        QUADRATURE, abs=0.01
    )


def test_crps_of_a_normal_forecast_is_its_closed_form() -> None:
    outcome = np.array([0.0, 0.5, -2.0])
    z = outcome
    exact = z * (2 * norm.cdf(z) - 1) + 2 * norm.pdf(z) - 1 / np.sqrt(np.pi)  # Gneiting & Raftery 2007, eq. 5
    assert crps_of_quantiles(outcome, normal_quantiles(np.ones(3))) == pytest.approx(exact.mean(), rel=0.03)


def test_a_sharper_true_forecast_has_the_lower_crps() -> None:
    rng = np.random.default_rng(2)
    sigma = np.where(np.arange(4000) % 2 == 0, 0.005, 0.02)
    outcome = rng.normal(0.0, sigma)
    knows = crps_of_quantiles(outcome, normal_quantiles(sigma))
    blind = crps_of_quantiles(outcome, normal_quantiles(np.full(4000, outcome.std())))
    assert knows < blind
