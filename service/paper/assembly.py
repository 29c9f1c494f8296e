"""The paper trader's parts, made from a checkpoint and the few words of a command line."""

import time
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import urlsplit

from configs.version import code_version
from data.bars import Bars, parse_time
from data.exchange import ExchangeClient
from market_env.instrument import Instrument
from service.feed.exchange import ExchangeFeed
from service.feed.protocol import BarFeed
from service.feed.replay import ReplayFeed
from service.feed.symbols import exchange_symbol
from service.feed.synthetic import SyntheticFeed
from service.ledger.schema import RunRow
from service.model import ServedModel
from service.paper.config import FeedKind, PaperConfig
from service.paper.recovery import Terms
from service.paper.trader import Setup

# A request that takes longer counts as failed: well under the patience of a health check.
REQUEST_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class FeedChoice:
    """What was said about the feed. speed: None for a bar a second. since: None for the experiment's test split."""

    kind: FeedKind = FeedKind.AUTO
    exchange: str = "binance"
    url: str | None = None
    speed: float | None = None
    since: str | None = None
    generator: str = "regime"


@dataclass(frozen=True)
class Source:
    """A feed, how to keep time with it, and the first bar a new run may trade (None: the first that is fresh)."""

    feed: BarFeed
    config: PaperConfig
    trade_from: int | None


def make_setup(
    model: ServedModel, symbol: str | None, *, active: RunRow | None, seed: int | None, equity: float | None
) -> Setup:
    """What a run trades with. What is left out is the active run's, else the experiment's."""
    experiment = model.experiment
    market = experiment.market.for_evaluation()
    if active is not None:
        symbol = symbol or active.instrument
        seed = active.seed if seed is None else seed
        equity = active.initial_equity if equity is None else equity
    return Setup(
        model=model,
        market=market,
        instrument=Instrument.for_symbol(symbol or experiment.data.symbols[0]),
        seed=seed or 0,
        initial_equity=market.episode.initial_equity if equity is None else equity,
        guards=experiment.guards,
    )


def make_source(setup: Setup, choice: FeedChoice, *, cursor: int | None) -> Source:
    """The feed of a setup. cursor: the bar a run is done with; a replay goes on from there.

    Raises ValueError for a choice that cannot be.
    """
    kind = choice.kind
    if kind is FeedKind.AUTO:
        # What an exchange trades is traded there; anything else is only to be had as a recording.
        kind = FeedKind.CCXT if setup.instrument.asset_class == "crypto" else FeedKind.REPLAY
    if kind is FeedKind.CCXT:
        if choice.speed is not None:
            raise ValueError("--speed: expected with --feed replay or synthetic; an exchange has a pace of its own")
        return _exchange(setup, choice)
    timeframe = setup.model.timeframe
    speed = timeframe.seconds if choice.speed is None else choice.speed
    done = None if cursor is None else timeframe.close_of(cursor)
    if kind is FeedKind.SYNTHETIC:
        made = SyntheticFeed(
            choice.generator, timeframe, seed=setup.seed, history=setup.history_bars, speed=speed, start=done
        )
        return Source(made, PaperConfig.for_venue_time(), None)
    bars = _recorded(setup)
    start = parse_time(choice.since or setup.model.experiment.splits.test[0])
    feed = ReplayFeed(bars, start=start if done is None else done, speed=speed)
    return Source(feed, PaperConfig.for_venue_time(), start)


def make_terms(setup: Setup, source: Source, choice: FeedChoice) -> Terms:
    """What a run is begun with, for the record."""
    config: dict[str, Any] = {
        "experiment": setup.model.experiment.dump(),
        "guards": setup.guards.model_dump(mode="json"),
        "paper": source.config.model_dump(mode="json"),
        "feed": {**asdict(choice), "url": None if choice.url is None else _host(choice.url)},
        "trade_from": source.trade_from,
    }
    return Terms(
        venue=source.feed.venue, timeframe=str(setup.model.timeframe), code_version=code_version(), config=config
    )


def _exchange(setup: Setup, choice: FeedChoice) -> Source:
    symbol = exchange_symbol(setup.instrument.symbol)
    client = ExchangeClient(
        choice.exchange, url_override=choice.url, timeout_seconds=REQUEST_SECONDS, clock=time.time
    )  # fmt: skip
    # Bars of a mock must never be taken for an exchange's: the venue of a run says where they came from.
    venue = f"ccxt:{choice.exchange}" + ("" if choice.url is None else f"@{_host(choice.url)}")
    feed = ExchangeFeed(client, symbol, setup.model.timeframe, venue=venue)
    return Source(feed, PaperConfig() if choice.url is None else PaperConfig.for_venue_time(), None)


def _host(url: str) -> str:
    """Host and port of a URL, without what may be a password before them."""
    return urlsplit(url).netloc.rpartition("@")[2]


def _recorded(setup: Setup) -> Bars:
    """The experiment's own bars of the instrument."""
    series = setup.model.experiment.load_bars()
    for bars in series:
        if bars.symbol.lower() == setup.instrument.symbol.lower():
            return bars
    raise ValueError(
        f"--symbol {setup.instrument.symbol}: a replay has the experiment's "
        f"{', '.join(bars.symbol for bars in series)}. Give one of them, or --feed ccxt"
    )
