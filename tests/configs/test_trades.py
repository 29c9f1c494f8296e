"""A file of trades becomes the decisions that fill in the bars of those trades."""

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from agent.__main__ import app
from agent.demonstrations import Demonstrations
from configs.environments import MarketEnvs
from configs.experiment import load_experiment
from configs.trades import TradesError, TradesPlayer, read_trades


@pytest.fixture(scope="module")
def envs() -> MarketEnvs:
    return MarketEnvs(load_experiment("configs/smoke.yaml", ["splits.train=['1999-01-01','2001-01-01']"]))


def _file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "trades.csv"
    path.write_text(text)
    return path


def _player(envs: MarketEnvs, path: Path, capital: float = 10_000.0) -> TradesPlayer:
    env = envs.evaluation("train", 1, 0)
    return TradesPlayer(read_trades(path), envs.markets("train")[0], env.grid, capital=capital, initial_equity=10_000.0)


def _played(envs: MarketEnvs, player: TradesPlayer, steps: int) -> tuple[list[int], list[int]]:
    """Decision bars t and chosen actions."""
    env = envs.evaluation("train", 1, 0)
    observations, infos = env.reset(seed=0)
    bars, actions = [], []
    for _ in range(steps):
        action = player(observations, np.ones((1, 3), bool), infos)
        bars.append(int(infos["t"][0]))
        actions.append(int(action[0]))
        observations, _, _, _, infos = env.step(action)
    return bars, actions


def test_a_target_is_decided_one_bar_before_the_bar_of_its_time(envs: MarketEnvs, tmp_path: Path) -> None:
    market = envs.markets("train")[0]
    first = market.first_decision
    opens = market.timestamp
    # Midday of the third bar after the first decision, and the open of the sixth.
    half = opens[first + 3] + market.bar_ms // 2
    path = _file(tmp_path, f"timestamp,target,note\n{half},0.52,in\n{opens[first + 6]},0,out\n")
    player = _player(envs, path)
    bars, actions = _played(envs, player, 8)
    assert bars == list(range(first, first + 8))
    assert actions == [0, 0, 1, 1, 1, 0, 0, 0]  # levels 0, 0.5, 1: decided at bars 2 and 5, filled in 3 and 6
    assert player.used == 2
    assert player.largest_difference == pytest.approx(0.02)


def test_quantities_add_up_and_are_valued_at_the_close(envs: MarketEnvs, tmp_path: Path) -> None:
    market = envs.markets("train")[0]
    first, opens = market.first_decision, market.timestamp
    units = 10_000.0 / market.close[first]  # all in, at the price of the first decision
    text = f"timestamp,side,quantity\n{opens[first + 1]},buy,{units}\n{opens[first + 3]},SELL,{units / 2}\n"
    _, actions = _played(envs, _player(envs, _file(tmp_path, text)), 5)
    assert actions == [2, 2, 1, 1, 1]
    _, richer = _played(envs, _player(envs, _file(tmp_path, text), capital=20_000.0), 2)
    assert richer == [1, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("when,what\n1,2\n", "expected the columns timestamp,target or timestamp,side,quantity; found when,what"),
        ("", "found none"),
        ("timestamp,target\n", "expected at least one trade, found none"),
        ("timestamp,target\nyesterday,1\n", "line 2: timestamp: expected ISO 8601"),
        ("timestamp,target\n2000-01-03,much\n", "line 2: target: expected a number, found 'much'"),
        ("timestamp,target\n2000-02-01,1\n2000-01-01,0\n", "line 3: expected increasing times"),
        ("timestamp,side,quantity\n2000-01-03,hold,1\n", "line 2: side: expected buy or sell, found 'hold'"),
        ("timestamp,side,quantity\n2000-01-03,buy,-1\n", "line 2: quantity: expected a positive number, found '-1'"),
    ],
)
def test_a_file_that_cannot_be_understood_is_refused_by_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(TradesError, match=message):
        read_trades(_file(tmp_path, text))


def test_trades_of_another_time_are_refused(envs: MarketEnvs, tmp_path: Path) -> None:
    with pytest.raises(TradesError, match=r"no trade falls into these bars: expected times from .* found 2015-01-01"):
        _player(envs, _file(tmp_path, "timestamp,target\n2015-01-01T00:00:00Z,1\n"))


def test_the_command_records_trades_that_training_takes(tmp_path: Path) -> None:
    trades = _file(tmp_path, "timestamp,target\n2000-06-01T00:00:00Z,1\n2000-09-01T00:00:00Z,0\n")
    out = tmp_path / "mine.safetensors"
    split = "splits.train=['1999-01-01','2001-01-01']"
    line = ["record", "configs/smoke.yaml", "--set", split, "--trades", str(trades), "--out", str(out), "--json"]
    result = CliRunner().invoke(app, line)
    assert result.exit_code == 0, result.output
    recorded = Demonstrations.load(out)
    held = recorded.action[recorded.has_transition]
    assert recorded.episodes == 1
    assert 60 <= (held == 2).sum() <= 66  # about 64 trading days in three months
    assert (held[held != 2] == 0).all()
