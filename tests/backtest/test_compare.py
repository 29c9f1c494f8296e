"""Paired comparison on common random numbers."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from backtest.compare import compare, comparison_json, comparison_page, sentence
from backtest.metrics import Floats
from backtest.results import Run
from backtest.runner import run_series
from data.bars import Bars
from market_env.config import ActionConfig, MarketConfig
from market_env.market import Market

CONFIG = MarketConfig(actions=ActionConfig(no_trade_band=0.0)).for_evaluation()
DAYS = 500


@pytest.fixture
def contestants(bars_of: Callable[..., Bars]) -> Callable[..., tuple[list[Run], Run]]:
    """Runs of named position series on one noisy market, and buy-and-hold."""
    rng = np.random.default_rng(4)
    edge = rng.choice([-1.0, 1.0], DAYS)
    drift = 0.003 * np.concatenate([[0.0], edge[:-1]])
    close = 100.0 * np.exp(np.cumsum(drift + rng.normal(0.0, 0.01, DAYS)))
    market = Market.prepare(bars_of(close), None)

    def run(**positions: Floats) -> tuple[list[Run], Run]:
        runs = [
            run_series(series, market, CONFIG, seeds=[0, 1, 2], name=name)
            for name, series in {"reference": np.zeros(DAYS), "knows": edge, **positions}.items()
        ]
        hold = np.where(np.arange(DAYS) == 0, 1.0, np.nan)
        return runs, run_series(hold, market, CONFIG, seeds=[0, 1, 2], name="buy_and_hold")

    return run


def test_a_contestant_with_an_edge_is_told_from_one_without(contestants: Callable[..., Any]) -> None:
    runs, hold = contestants()
    found = compare(runs, hold, reps=400)
    (difference,) = found.differences
    low, high = difference.log_growth_interval
    assert 0.0 < low < difference.log_growth < high
    assert difference.p_value < 0.05
    assert sentence(found).startswith("knows is ahead of reference")
    assert found.superior == ("knows",)


def test_a_copy_differs_by_exactly_nothing(contestants: Callable[..., Any]) -> None:
    runs, hold = contestants(copy=np.zeros(DAYS))
    difference = compare([runs[0], runs[2]], hold, reps=200).differences[0]
    assert difference.log_growth == 0.0
    assert difference.p_value == 1.0
    assert (difference.fill_low, difference.fill_high) == (0.0, 0.0)


def test_common_draws_make_the_difference_less_noisy_than_the_results(contestants: Callable[..., Any]) -> None:
    rng = np.random.default_rng(9)
    trades = rng.choice([0.0, 1.0], DAYS)
    almost = trades.copy()
    almost[100] = 1.0 - almost[100]
    runs, _ = contestants(one=trades, other=almost)
    growth = [np.log(run.accounts.equity[:, -1]) for run in runs[2:]]
    assert np.std(growth[1] - growth[0]) < 0.5 * np.std(growth[0])


def test_runs_on_different_seeds_are_refused(contestants: Callable[..., Any], bars_of: Callable[..., Bars]) -> None:
    runs, hold = contestants()
    market = Market.prepare(bars_of(np.linspace(100, 120, DAYS)), None)
    other = run_series(np.zeros(DAYS), market, CONFIG, seeds=[7], name="other")
    with pytest.raises(ValueError, match="not run on the same bars"):
        compare([runs[0], other], hold)


def test_two_contestants_of_one_name_are_refused(contestants: Callable[..., Any]) -> None:
    runs, hold = contestants()
    with pytest.raises(ValueError, match="different names"):
        compare([runs[0], runs[0]], hold)


def test_json_and_page_say_the_same(contestants: Callable[..., Any]) -> None:
    found = compare(*contestants(), reps=200)
    document = comparison_json(found)
    page = comparison_page(found, "a and b", "test")
    assert document["reference"] == "reference"
    assert document["sentence"] in page
    assert page.count("<figcaption>") == 2


@pytest.mark.browser
def test_the_comparison_page_draws_without_errors_or_requests(
    contestants: Callable[..., Any], tmp_path: Any, browser_page: Any
) -> None:
    file = tmp_path / "compare.html"
    file.write_text(comparison_page(compare(*contestants(), reps=200), "a and b", "test"))
    browser_page.open(file.as_uri(), width=1400)
    assert browser_page.wait_for("document.documentElement && document.documentElement.dataset.drawn") == "2"
    assert browser_page.errors() == []
    assert browser_page.requests() == []
