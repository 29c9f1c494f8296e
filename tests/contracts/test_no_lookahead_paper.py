"""Contract: what happens after bar t changes nothing that the paper trader decided, ordered or booked up to t."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agent.checkpoint import CheckpointMetadata, Counters, save_checkpoint
from agent.networks.model import StochasticMuZero
from configs.experiment import parse_experiment
from data.bars import Bars
from data.synthetic import martingale
from service.feed.replay import ReplayFeed
from service.ledger.store import Ledger, Page
from service.model import ServedModel, load_model
from service.paper.assembly import make_setup
from service.paper.config import PaperConfig
from service.paper.loop import PaperTrader, Surroundings
from service.paper.recovery import Terms
from service.paper.stopping import Stop

FIRST, ROWS = 300, 60
HOUR = 3_600_000


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ServedModel:
    """Random weights on everything an observation holds."""
    experiment = parse_experiment(
        {
            "name": "lookahead",
            "data": {"source": "store", "symbols": ["BTCUSDT"], "timeframe": "1h"},
            "splits": {
                "train": ["2018-01-01", "2019-01-01"],
                "validation": ["2019-01-01", "2020-01-01"],
                "test": ["2020-01-01", "2021-01-01"],
            },
            "market": {"observation": {"window": 8}},
            "agent": {
                "network": {
                    "width": 16, "encoder_width": 8, "latent": 8, "hidden": 16, "codes": 4, "support_atoms": 11,
                },
                "search": {"simulations": 8},
            },
        },
        "test",
    )  # fmt: skip
    shapes = {"window": (8, len(experiment.feature_set.names)), "account": (8,)}
    torch.manual_seed(0)
    network = StochasticMuZero(shapes, len(experiment.market.actions.levels), experiment.agent.network)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    metadata = CheckpointMetadata(
        code_version="test",
        agent=experiment.agent,
        observation_shapes=shapes,
        actions=len(experiment.market.actions.levels),
        counters=Counters(updates=1),
        experiment=experiment.dump(),
        feature_fingerprint=experiment.feature_set.fingerprint,
    )
    root = tmp_path_factory.mktemp("lookahead")
    return load_model(save_checkpoint(root, "best", network, metadata))


def scrambled_after(bars: Bars, last: int) -> Bars:
    """The same bars up to `last`; beyond it, another market altogether."""
    other = martingale(len(bars), seed=999, price=3.0, volatility=0.05)
    columns = {
        name: np.concatenate([getattr(bars, name)[: last + 1], getattr(other, name)[last + 1 :]])
        for name in ("open", "high", "low", "close", "volume")
    }
    return Bars(bars.symbol, bars.timeframe, bars.venue, bars.timestamp, **columns)


def lived(model: ServedModel, bars: Bars, root: Path) -> list[tuple[Any, ...]]:
    """Per bar: what was decided, ordered, filled and booked."""
    root.mkdir()
    seconds: Iterator[int] = itertools.count()
    with Ledger.open(f"sqlite:///{root / 'ledger.sqlite3'}", writable=True) as ledger:
        trader = PaperTrader(
            make_setup(model, None, active=None, seed=3, equity=None),
            ReplayFeed(bars, start=int(bars.timestamp[FIRST]), speed=0.0),
            ledger,
            Terms(venue="replay", timeframe="1h", code_version="test", config={}),
            config=PaperConfig.for_venue_time(),
            stop=Stop(),
            surroundings=Surroundings(
                local_ms=lambda: 0, seconds=lambda: float(next(seconds)), spread=lambda: 0.5,
                new_run_id=lambda: "run", kill_switch=root / "HALT", backups=root, pid=1,
            ),
            trade_from=int(bars.timestamp[FIRST]),
        )  # fmt: skip
        trader.start()
        while not trader.finished:
            trader.turn()
        with ledger.reading() as read:
            page = Page(limit=1000)
            orders = {row.submitted_ts - HOUR: row for row in read.orders("run", page)}
            fills = {row.bar_ts: row for row in read.fills("run", page)}
            marks = {row.ts: row for row in read.equity("run", page)}
            return [
                (
                    row.bar_ts, row.status, row.action, row.value, row.policy_json, row.q_values_json,
                    row.outlook_json, row.reason, row.mode,
                    orders[row.bar_ts].quantity if row.bar_ts in orders else None,
                    fills[row.bar_ts].price if row.bar_ts in fills else None,
                    marks[row.bar_ts].record_json,
                )
                for row in read.decisions("run", page)
            ]  # fmt: skip


@pytest.fixture(scope="module")
def bars() -> Bars:
    return martingale(FIRST + ROWS, seed=5)


@pytest.fixture(scope="module")
def truth(model: ServedModel, bars: Bars, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Any, ...]]:
    return lived(model, bars, tmp_path_factory.mktemp("truth") / "state")


@pytest.mark.parametrize("cut", [0, 7, 31, 50])
def test_a_paper_run_up_to_t_does_not_know_what_comes_after(
    cut: int, model: ServedModel, bars: Bars, truth: list[tuple[Any, ...]], tmp_path: Path
) -> None:
    other = lived(model, scrambled_after(bars, FIRST + cut), tmp_path / "state")
    assert len(truth) == len(other) == ROWS
    assert other[: cut + 1] == truth[: cut + 1]
    # Beyond it everything differs: had nothing, the test would prove nothing.
    assert all(mine != theirs for mine, theirs in zip(other[cut + 1 :], truth[cut + 1 :], strict=True))
