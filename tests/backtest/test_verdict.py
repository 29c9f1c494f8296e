"""The verdict: noise is called noise, a planted edge is found, drift alone is not skill."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from backtest.baselines import shifted_timing
from backtest.evaluation import Evaluation, evaluate
from backtest.metrics import Floats
from backtest.runner import run_series
from backtest.trials import TrialStatistics
from data.bars import Bars
from market_env.config import ActionConfig, CostConfig, MarketConfig
from market_env.market import Market

CONFIG = MarketConfig(actions=ActionConfig(no_trade_band=0.0), costs=CostConfig(taker_fee_bps=1.0)).for_evaluation()
DAYS = 500


@pytest.fixture
def judged(bars_of: Callable[..., Bars]) -> Callable[..., Evaluation]:
    """Evaluate targets (-1, 0, 1) on closes, with few resamples: the verdict does not hang on the fourth digit."""

    def run(close: Floats, targets: Floats) -> Evaluation:
        market = Market.prepare(bars_of(close), None)
        finished = run_series(targets, market, CONFIG, seeds=[0], name="policy")
        hold = run_series(
            np.where(np.arange(len(close)) == 0, 1.0, np.nan), market, CONFIG, seeds=[0], name="buy_and_hold"
        )
        return evaluate(
            finished,
            baselines={"buy_and_hold": hold},
            random_timing=shifted_timing(finished, market, CONFIG, count=59),
            trials=TrialStatistics(touches=1, trials=1, variance=0.0),
            bootstrap_reps=200,
            spa_reps=50,
        )

    return run


def sticky(rng: np.random.Generator, rows: int) -> Floats:
    """Positions that change about every ten bars, as a trading policy's do."""
    fresh = rng.random(rows) < 0.1
    fresh[0] = True
    draws = rng.choice([-1.0, 0.0, 1.0], rows)
    return draws[np.maximum.accumulate(np.where(fresh, np.arange(rows), 0))]


def test_a_policy_on_noise_shows_no_evidence_of_skill_in_95_percent_of_runs(
    judged: Callable[..., Evaluation],
) -> None:
    called_noise = 0
    for run in range(200):
        rng = np.random.default_rng(run)
        close = 100.0 * np.exp(np.cumsum(rng.normal(0.0, 0.01, DAYS)))
        evaluation = judged(close, sticky(rng, DAYS))
        called_noise += not evaluation.verdict.skill
    assert called_noise >= 190


def test_a_planted_edge_is_found(judged: Callable[..., Evaluation]) -> None:
    found = 0
    for run in range(10):
        rng = np.random.default_rng(1000 + run)
        positions = sticky(rng, DAYS)
        # The market follows the position a little: what a decision at t earns is the return of bar t+1.
        drift = 0.0025 * np.concatenate([[0.0], positions[:-1]])
        close = 100.0 * np.exp(np.cumsum(drift + rng.normal(0.0, 0.01, DAYS)))
        found += judged(close, positions).verdict.skill
    assert found >= 8


def test_riding_a_rising_market_is_not_skill(judged: Callable[..., Evaluation]) -> None:
    rng = np.random.default_rng(5)
    close = 100.0 * np.exp(np.cumsum(rng.normal(0.002, 0.008, DAYS)))
    evaluation = judged(close, np.ones(DAYS))
    assert evaluation.metrics["sharpe"].value > 2  # type: ignore[operator]
    assert not evaluation.verdict.skill
    assert evaluation.verdict.sentence.startswith("No evidence of skill: it earned")
    assert "random times" in evaluation.verdict.sentence


def test_too_short_a_history_is_said(judged: Callable[..., Evaluation]) -> None:
    rng = np.random.default_rng(6)
    close = 100.0 * np.exp(np.cumsum(rng.normal(0.0, 0.01, 60)))
    evaluation = judged(close, sticky(rng, 60))
    assert "too few" in evaluation.verdict.sentence
    assert any("180 days" in warning for warning in evaluation.warnings)


def test_the_sentence_never_contains_the_word_of_a_machine(judged: Callable[..., Evaluation], tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    close = 100.0 * np.exp(np.cumsum(rng.normal(0.0, 0.01, DAYS)))
    sentence = judged(close, np.full(DAYS, np.nan)).verdict.sentence
    for word in ("None", "nan", "inf"):
        assert word not in sentence.split()
