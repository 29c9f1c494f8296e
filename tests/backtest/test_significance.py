"""Statistics against published worked values, analytic limits and simulation."""

import math

import numpy as np
import pytest

from backtest.significance import (
    block_length,
    deflated_sharpe_ratio,
    expected_maximum_sharpe,
    interval,
    minimum_track_record,
    probabilistic_sharpe_ratio,
    probability_of_overfitting,
    sharpe_evidence,
    shift_p_value,
    stationary_bootstrap,
    stepwise_superior,
    superior_predictive_ability,
)

# Bailey & López de Prado (2014), "The Deflated Sharpe Ratio", numerical example: annual SR 2.5 over 1,250 days of 250
# a year, skew -3, kurtosis 10, variance 1/2 of annual Sharpe ratios over the trials.
DAILY_SHARPE = 2.5 / math.sqrt(250)
TRIAL_VARIANCE = 0.5 / 250


def test_expected_maximum_of_a_hundred_trials_is_the_published_one() -> None:
    assert expected_maximum_sharpe(100, TRIAL_VARIANCE) == pytest.approx(0.113172, abs=5e-7)


@pytest.mark.parametrize(("trials", "expected"), [(100, 0.900397), (46, 0.950502)])
def test_deflated_sharpe_is_the_published_one(trials: int, expected: float) -> None:
    found = deflated_sharpe_ratio(DAILY_SHARPE, 1250, -3.0, 10.0, trials=trials, variance=TRIAL_VARIANCE)
    assert found == pytest.approx(expected, abs=5e-7)


def test_minimum_track_record_is_the_worked_one() -> None:
    assert minimum_track_record(DAILY_SHARPE, -3.0, 10.0) == pytest.approx(166.643, abs=5e-4)


def test_track_record_of_minimum_length_has_psr_of_exactly_the_confidence() -> None:
    needed = minimum_track_record(0.1, -0.5, 5.0, confidence=0.9)
    assert needed is not None
    error = math.sqrt(1 + 0.5 * 0.1 + (5 - 1) / 4 * 0.01) / math.sqrt(needed - 1)
    assert 0.5 * math.erfc(-0.1 / error / math.sqrt(2)) == pytest.approx(0.9)


def test_no_track_record_is_long_enough_for_a_losing_strategy() -> None:
    assert minimum_track_record(-0.1, 0.0, 3.0) is None


def test_psr_of_a_zero_sharpe_is_one_half() -> None:
    assert probabilistic_sharpe_ratio(0.0, 100, 0.0, 3.0) == pytest.approx(0.5)


def test_a_single_trial_is_not_deflated() -> None:
    returns = np.random.default_rng(0).normal(0.001, 0.01, 300)
    evidence = sharpe_evidence(returns, trials=1, variance=0.01)
    assert evidence.dsr == evidence.psr
    assert evidence.expected_maximum == 0.0


def test_expected_maximum_matches_the_maximum_of_simulated_trials() -> None:
    draws = np.random.default_rng(1).normal(0.0, 0.3, (4000, 50)).max(axis=1)
    assert expected_maximum_sharpe(50, 0.09) == pytest.approx(draws.mean(), rel=0.02)


def test_returns_that_do_not_vary_give_no_evidence() -> None:
    assert sharpe_evidence(np.zeros(100), trials=3, variance=0.1).psr is None


def test_bootstrap_is_reproducible_and_changes_with_its_seed() -> None:
    returns = np.random.default_rng(2).normal(0.0, 0.01, 200)
    first, again, other = (stationary_bootstrap(returns, reps=50, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(first.sharpe, again.sharpe)
    assert not np.array_equal(first.sharpe, other.sharpe)


def autoregressive(rng: np.random.Generator, rows: int, coefficient: float) -> np.ndarray:
    noise = rng.normal(0.0, 1.0, rows + 50)
    for t in range(1, len(noise)):
        noise[t] += coefficient * noise[t - 1]
    return noise[50:]


def test_iid_bootstrap_is_too_narrow_for_returns_with_memory() -> None:
    returns = 0.05 + autoregressive(np.random.default_rng(5), 1500, 0.15)
    stationary = stationary_bootstrap(returns, reps=1000)
    iid = stationary_bootstrap(returns, reps=1000, length=1.0)
    width = [high - low for low, high in (stationary.sharpe_interval(), iid.sharpe_interval())]
    assert stationary.block_length > 2
    # In theory the mean's standard error grows by sqrt((1 + 0.15)/(1 - 0.15)) = 1.163.
    assert 1.06 < width[0] / width[1] < 1.27


def test_block_length_of_noise_is_short_and_of_memory_long() -> None:
    rng = np.random.default_rng(8)
    assert block_length(rng.normal(size=1000)) < 8
    assert block_length(autoregressive(rng, 1000, 0.6)) > 8


def test_bootstrap_interval_covers_the_true_sharpe_as_often_as_it_says() -> None:
    rng = np.random.default_rng(11)
    truth, runs, covered = 0.05, 400, 0
    for run in range(runs):
        returns = 0.01 * (truth + rng.standard_t(6, 750) / math.sqrt(1.5))
        low, high = stationary_bootstrap(returns, reps=300, seed=run).sharpe_interval()
        covered += low <= truth <= high
    # 95% +- two standard errors of 400 runs (1.1%), within the 93-97% asked for.
    assert 0.93 <= covered / runs <= 0.97


def test_interval_leaves_out_resamples_without_variation() -> None:
    assert interval(np.array([np.nan, 1.0, 1.0, np.nan])) == (1.0, 1.0)


def test_spa_keeps_its_size_under_the_null() -> None:
    rng = np.random.default_rng(13)
    rejected = sum(
        superior_predictive_ability(np.zeros(250), rng.normal(0.0, 0.01, (250, 5)), reps=200, seed=run) <= 0.05
        for run in range(200)
    )
    assert rejected / 200 <= 0.09  # 5% and two and a half standard errors


def test_spa_and_stepwise_find_a_planted_edge() -> None:
    rng = np.random.default_rng(14)
    models = rng.normal(0.0, 0.01, (500, 4))
    models[:, 2] += 0.002
    assert superior_predictive_ability(np.zeros(500), models) < 0.01
    assert stepwise_superior(np.zeros(500), models) == [2]


def test_a_copy_of_the_benchmark_is_not_superior() -> None:
    returns = np.random.default_rng(15).normal(0.0, 0.01, 100)
    assert superior_predictive_ability(returns, returns[:, None]) == 1.0


def test_overfitting_probability_of_noise_is_one_half_on_average() -> None:
    rng = np.random.default_rng(16)
    found = [probability_of_overfitting(rng.normal(size=(320, 20)), blocks=10).probability for _ in range(60)]
    assert np.mean(found) == pytest.approx(0.5, abs=0.06)
    assert np.ptp(found) > 0.3  # which is why a single panel is informative only


def test_overfitting_probability_of_a_true_edge_is_small() -> None:
    returns = np.random.default_rng(17).normal(size=(640, 12))
    returns[:, 4] += 0.4
    assert probability_of_overfitting(returns).probability < 0.01


def test_overfitting_splits_are_all_ways_to_take_half_of_the_blocks() -> None:
    found = probability_of_overfitting(np.random.default_rng(18).normal(size=(64, 5)), blocks=8)
    assert len(found.logits) == math.comb(8, 4)


def test_overfitting_refuses_too_short_a_history() -> None:
    with pytest.raises(ValueError, match="at least 32"):
        probability_of_overfitting(np.zeros((20, 5)))


@pytest.mark.parametrize(("score", "expected"), [(10.0, 1 / 6), (3.0, 4 / 6), (0.0, 1.0)])
def test_shift_p_value_counts_the_run_itself(score: float, expected: float) -> None:
    assert shift_p_value(score, np.array([1.0, 2.0, 3.0, 4.0, 5.0])) == pytest.approx(expected)
