"""A paper trader on a bench: fake time, a mock exchange or a replay, a real ledger."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from data.bars import VALUE_COLUMNS, Bars
from data.exchange import ExchangeClient
from data.mock_exchange import MockExchange
from data.synthetic import martingale
from market_env.guards import GuardConfig
from service.feed.exchange import ExchangeFeed
from service.feed.protocol import BarFeed
from service.feed.replay import ReplayFeed
from service.ledger.schema import CommandKind, DecisionRow, EventRow
from service.ledger.store import Ledger, Page, Reader, every
from service.model import ServedModel, load_model
from service.paper.assembly import make_setup
from service.paper.config import PaperConfig
from service.paper.loop import PaperTrader, Surroundings
from service.paper.recovery import Terms
from service.paper.stopping import Stop
from service.paper.trader import Setup

HOUR = 3_600_000
SEED = 7
# Hours of fake time pass in these tests; looking at everything as often as a real process does would fill them.
LEISURELY = PaperConfig(command_seconds=60.0, heartbeat_seconds=600.0, poll_seconds=300.0)


class Bench:
    """One ledger and one fake time; traders come and go.

    The venue's clock stands at `venue_ms`, this machine's differs from it by `skew_ms` (theirs minus ours). Waiting
    moves both.
    """

    def __init__(self, root: Path, model: ServedModel, *, guards: GuardConfig | None = None) -> None:
        self.root = root
        self.url = f"sqlite:///{root / 'ledger.sqlite3'}"
        self.ledger = Ledger.open(self.url, writable=True, busy_seconds=0.2)
        self.setup = make_setup(model, None, active=None, seed=SEED, equity=None)
        if guards is not None:
            self.setup = self.with_setup(guards=guards)
        self.venue_ms = 0
        self.skew_ms = 0
        self.slept = 0.0
        self.numbers = itertools.count(1)
        self.kill_switch = root / "HALT"

    def with_setup(self, **changes: Any) -> Setup:
        names = ("model", "market", "instrument", "seed", "initial_equity", "guards")
        return Setup(**{name: changes.get(name, getattr(self.setup, name)) for name in names})

    def local_ms(self) -> int:
        return self.venue_ms - self.skew_ms

    def pass_time(self, seconds: float) -> None:
        self.slept += seconds
        self.venue_ms += round(seconds * 1_000.0)

    def trader(
        self,
        feed: BarFeed,
        *,
        config: PaperConfig | None = None,
        stop: Stop | None = None,
        ledger: Ledger | None = None,
        trade_from: int | None = None,
    ) -> PaperTrader:
        """A trader as a fresh process would make it, recovered."""
        made = PaperTrader(
            self.setup,
            feed,
            ledger or self.ledger,
            Terms(venue=feed.venue, timeframe=str(self.setup.model.timeframe), code_version="test", config={}),
            config=config or (PaperConfig.for_venue_time() if isinstance(feed, ReplayFeed) else LEISURELY),
            stop=stop or Stop(),
            surroundings=Surroundings(
                local_ms=self.local_ms,
                seconds=lambda: self.slept,
                spread=lambda: 0.5,
                new_run_id=lambda: f"run-{next(self.numbers)}",
                kill_switch=self.kill_switch,
                backups=self.root / "backups",
                pid=1,
            ),
            trade_from=trade_from,
        )
        made.start()
        return made

    def go(self, trader: PaperTrader, seconds: float) -> None:
        """Let the loop turn for a while of fake time."""
        until = self.slept + seconds
        while self.slept < until:
            self.pass_time(min(max(trader.turn(), 0.001), until - self.slept))

    def drain(self, trader: PaperTrader, turns: int = 100_000) -> None:
        """Let a replay run to its end."""
        for _ in range(turns):
            if trader.finished:
                return
            self.pass_time(trader.turn())
        raise AssertionError("the replay did not end")

    # --- what the ledger says ----------------------------------------------------------------------------------------

    def read(self, work: Callable[[Reader], Any]) -> Any:
        with self.ledger.reading() as read:
            return work(read)

    @property
    def run_id(self) -> str:
        return str(self.read(lambda read: read.active_run().id))

    def decisions(self) -> list[DecisionRow]:
        return self.read(lambda read: list(every(read.decisions, self.run_id, lambda row: row.bar_ts)))

    def statuses(self) -> dict[int, str]:
        return {row.bar_ts: row.status for row in self.decisions()}

    def events(self, kind: str | None = None) -> list[EventRow]:
        found = self.read(lambda read: read.events_after(0, limit=5000))
        return [event for event in found if kind is None or event.kind == kind]

    def mode(self) -> str:
        return str(self.read(lambda read: read.risk_state(self.run_id).mode))

    def order(self, kind: CommandKind, *, reason: str = "a test", confirm: str | None = None) -> int:
        with self.ledger.transaction() as write:
            return write.insert_command(
                kind, reason=reason, confirm=kind if confirm is None else confirm, requested_by="test", now_ms=1
            )

    def command(self, number: int) -> tuple[str, str | None]:
        row = self.read(lambda read: read.command(number))
        return row.status, row.result

    def rows(self) -> dict[str, list[dict[str, Any]]]:
        """Everything the run left, less when and how fast it was computed."""
        dropped = {"run_id", "decided_ms", "received_ms", "recorded_ms", "updated_ms", "latency_ms", "state_json"}

        def plain(row: Any) -> dict[str, Any]:
            names = [name for name in type(row).__dataclass_fields__ if name not in dropped]
            return {name: getattr(row, name) for name in names}

        def collect(read: Reader) -> dict[str, list[dict[str, Any]]]:
            run_id = read.active_run().id  # type: ignore[union-attr]
            whole = Page(limit=5000)
            lists = {
                "bars": read.bars(run_id, whole), "decisions": read.decisions(run_id, whole),
                "orders": read.orders(run_id, whole), "fills": read.fills(run_id, whole),
                "equity": read.equity(run_id, whole), "gaps": read.gaps(run_id, whole),
                "positions": read.positions(run_id), "account": [read.account(run_id)],
                "risk": [read.risk_state(run_id)],
            }  # fmt: skip
            return {name: [plain(row) for row in found if row is not None] for name, found in lists.items()}

        return self.read(collect)  # type: ignore[no-any-return]


@pytest.fixture(scope="session")
def hourly(tmp_path_factory: pytest.TempPathFactory, write_model: Callable[..., Path]) -> ServedModel:
    """A model of an hourly market that never closes."""
    return load_model(
        write_model(
            tmp_path_factory.mktemp("hourly"),
            data={"source": "store", "symbols": ["BTCUSDT"], "timeframe": "1h"},
            splits={
                "train": ["2018-01-01", "2019-01-01"],
                "validation": ["2019-01-01", "2020-01-01"],
                "test": ["2020-01-01", "2021-01-01"],
            },
        )
    )


@pytest.fixture(scope="session")
def write_model() -> Callable[..., Path]:
    """`write_checkpoint` of the service's tests."""
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location("service_conftest", Path(__file__).parents[1] / "conftest.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.write_checkpoint  # type: ignore[no-any-return]


@pytest.fixture
def make_bench(tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def make(model: ServedModel, **options: Any) -> Bench:
        root = tmp_path / f"state{len(made)}"
        root.mkdir()
        made.append(Bench(root, model, **options))
        return made[-1]

    yield make
    for bench in made:
        bench.ledger.close()


def btc(count: int, *, seed: int = 5, timeframe: str = "1h", without: tuple[int, ...] = ()) -> Bars:
    """Hourly bars of a made-up market; `without` rows are missing."""
    made = martingale(count, seed=seed, price=30_000.0, timeframe=timeframe)
    rows = [row for row in range(count) if row not in without]
    columns = {name: getattr(made, name)[rows] for name in ("timestamp", *VALUE_COLUMNS)}
    return Bars("BTC/USDT", made.timeframe, "binance", **columns)


class Venue:
    """A mock exchange on the bench's time, and feeds of it."""

    def __init__(self, bench: Bench, bars: Bars) -> None:
        self.bench = bench
        self.bars = bars
        self.exchange = MockExchange({"BTC/USDT": bars}, clock=lambda: bench.venue_ms)
        self.exchange.__enter__()
        self._clients: list[ExchangeClient] = []

    def feed(self) -> ExchangeFeed:
        clock = lambda: self.bench.local_ms() / 1_000.0  # noqa: E731
        client = ExchangeClient("binance", url_override=self.exchange.url, timeout_seconds=0.3, clock=clock)
        self._clients.append(client)
        return ExchangeFeed(
            client, "BTC/USDT", self.bench.setup.model.timeframe, venue="ccxt:binance", clock=clock
        )  # fmt: skip

    def after(self, row: int, seconds: float = 5.0) -> None:
        """Set the time to this many seconds after bar `row` closed."""
        length = self.bars.timeframe.milliseconds
        self.bench.venue_ms = int(self.bars.timestamp[row]) + length + round(seconds * 1_000.0)

    def close(self) -> None:
        for client in self._clients:
            client.close()
        self.exchange.__exit__(None, None, None)


@pytest.fixture
def make_venue() -> Iterator[Callable[..., Venue]]:
    made: list[Venue] = []

    def make(bench: Bench, bars: Bars) -> Venue:
        made.append(Venue(bench, bars))
        return made[-1]

    yield make
    for venue in made:
        venue.close()


@pytest.fixture
def bars_of() -> Callable[..., Bars]:
    """`btc`: bars of a made-up market that never closes."""
    return btc


@pytest.fixture
def replay_of() -> Callable[..., ReplayFeed]:
    """A replay on a bench: as fast as it goes, continuing where the bench's run stands."""

    def make(bench: Bench, bars: Bars, *, start: int) -> ReplayFeed:
        run = bench.read(lambda read: read.active_run())
        cursor = None
        if run is not None:
            cursor = bench.read(lambda read: read.cursor(run.id, run.instrument, run.timeframe))
        done = start if cursor is None else bars.timeframe.close_of(cursor.last_bar_ts)
        return ReplayFeed(bars, start=done, speed=0.0)

    return make
