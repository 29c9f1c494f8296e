"""Guards in the backtest: off they change nothing, on they hold what they say."""

from pathlib import Path

import numpy as np
import pytest

from agent.policy import Decision, Observations, decision_from_actions
from backtest.results import Run
from backtest.runner import run_policy
from configs.experiment import Experiment, load_experiment
from data.features import FeatureSet
from data.synthetic import martingale
from market_env.config import ActionConfig, MarketConfig
from market_env.guards import GuardConfig
from market_env.market import Market

CONFIG = MarketConfig(actions=ActionConfig(levels=(-1.0, 0.0, 1.0), no_trade_band=0.0)).for_evaluation()
OFF = GuardConfig.model_validate(dict.fromkeys(GuardConfig.model_fields))
ROOT = Path(__file__).resolve().parents[2]


class AlwaysLong:
    """Wants everything, always. broken_from: the row from which on its value is NaN."""

    num_actions = 3

    def __init__(self, broken_from: int | None = None) -> None:
        self.asked = 0
        self.broken_from = broken_from

    def act(
        self, observations: Observations, *, action_mask: object = None, simulations: int | None = None
    ) -> Decision:
        decision = decision_from_actions(np.full(len(observations["account"]), 2), 3)
        if self.broken_from is not None and self.asked >= self.broken_from:
            decision.value[:] = np.nan
        self.asked += 1
        return decision


@pytest.fixture(scope="module")
def market() -> Market:
    features = FeatureSet.build(["close_return"])
    return Market.prepare(martingale(900, seed=3, volatility=0.02), features, window=CONFIG.observation.window)


def trade(market: Market, guards: GuardConfig | None, policy: AlwaysLong | None = None) -> Run:
    return run_policy(policy or AlwaysLong(), market, CONFIG, seeds=[1, 2], guards=guards)


def test_without_limits_the_guards_change_nothing(market: Market) -> None:
    plain, guarded = trade(market, None), trade(market, OFF)
    for name in ("equity", "cash", "units", "target", "qty_ordered"):
        assert np.array_equal(getattr(plain.accounts, name), getattr(guarded.accounts, name), equal_nan=True), name


def test_a_drawdown_ends_a_path_flat(market: Market) -> None:
    plain = trade(market, None).accounts
    run = trade(market, GuardConfig(max_drawdown=0.2, max_daily_loss=None)).accounts
    peak = np.maximum.accumulate(plain.equity, axis=1)
    for path in range(2):
        hit = int(np.argmax(plain.equity[path] <= 0.8 * peak[path]))
        assert hit > 0, "the market of this test must lose 20% somewhere"
        assert np.array_equal(run.equity[path, : hit + 1], plain.equity[path, : hit + 1])
        assert run.target[path, hit] == 0.0
        closed = int(np.argmax(run.units[path, hit:] == 0.0)) + hit
        assert np.isnan(run.target[path, closed:]).all()
        assert (run.units[path, closed:] == 0.0).all()


def test_broken_output_halts_and_holds(market: Market) -> None:
    run = trade(market, GuardConfig(max_drawdown=None, max_daily_loss=None), AlwaysLong(broken_from=5)).accounts
    assert np.isfinite(run.target[:, :5]).all()
    assert np.isnan(run.target[:, 5:]).all()
    assert (run.units[:, 6:] > 0.0).all()


def test_the_exposure_cap_binds(market: Market) -> None:
    run = trade(market, GuardConfig(max_exposure=0.25, max_drawdown=None, max_daily_loss=None)).accounts
    assert (run.target == 0.25).all()


def test_default_guards_leave_an_experiments_fingerprint_alone() -> None:
    """Reports and checkpoints made before there were guards go on meaning the same."""
    experiment = load_experiment(ROOT / "configs" / "smoke.yaml")
    assert "guards" not in experiment.dump()
    tighter = load_experiment(ROOT / "configs" / "smoke.yaml", ["guards.max_drawdown=0.1"])
    assert tighter.guards == GuardConfig(max_drawdown=0.1)
    assert Experiment.model_validate(tighter.dump()) == tighter
