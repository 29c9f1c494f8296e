"""python -m service paper: the paper trader as a process, and its health check."""

import logging
import os
import random
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from data.commandline import JsonOption, print_json
from service.paper.config import FeedKind
from service.settings import Settings, read_settings

if TYPE_CHECKING:  # heavy: --help and --health must not wait for them
    from service.ledger.store import Ledger
    from service.model import ServedModel
    from service.paper.assembly import FeedChoice

KILL_SWITCH = "HALT"
BACKUPS = "backups"
UNHEALTHY = 1

log = logging.getLogger("smu0.paper")


def paper(
    checkpoint: Annotated[
        str | None, typer.Option(help="checkpoint directory, run or its name; default: the newest run, else bundled")
    ] = None,
    feed: Annotated[
        FeedKind, typer.Option(help="auto: ccxt for a crypto market, else a replay of the experiment's bars")
    ] = FeedKind.AUTO,
    exchange: Annotated[str, typer.Option(help="ccxt id of the exchange; public data, no keys")] = "binance",
    exchange_url: Annotated[
        str | None, typer.Option(help="where it answers instead, such as a mock; only its clock counts then")
    ] = None,
    symbol: Annotated[
        str | None, typer.Option(help="default: the run's, else the experiment's first; BTCUSDT means BTC/USDT")
    ] = None,
    speed: Annotated[
        float | None,
        typer.Option(min=0.0, help="replay, synthetic: their seconds per second; 0: at once; default: a bar a second"),
    ] = None,
    since: Annotated[
        str | None, typer.Option(help="replay: trade from this ISO date on; default: the experiment's test split")
    ] = None,
    generator: Annotated[
        str, typer.Option(help="synthetic: regime, mean_reversion, momentum or martingale")
    ] = "regime",
    seed: Annotated[
        int | None, typer.Option(min=0, help="of the simulated fills; default: the run's, 0 for a new one")
    ] = None,
    equity: Annotated[
        float | None, typer.Option(min=0.01, help="initial equity; default: the run's, else the experiment's")
    ] = None,
    new_run: Annotated[bool, typer.Option("--new-run", help="archive the present run and begin another")] = False,
    health: Annotated[
        bool, typer.Option("--health", help="only ask how the running process is; exit code 1 if it is not well")
    ] = False,
    json_output: JsonOption = False,
) -> None:
    """Trade on paper: one decision for every closed bar, with simulated fills, until stopped.

    Example: python -m service paper --feed replay --speed 0
    """
    settings = read_settings()
    if health:
        _report_health(settings, json_output=json_output)
        return
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("alembic").setLevel(logging.WARNING)

    import torch

    from configs.checkpoints import find_checkpoint
    from service.ledger.lock import paper_lock
    from service.ledger.store import Ledger
    from service.model import load_model
    from service.paper.assembly import FeedChoice

    # One decision at a time: handing such small products to other threads costs more than it gives.
    torch.set_num_threads(1)
    choice = FeedChoice(
        kind=feed,
        exchange=exchange,
        url=exchange_url or settings.exchange_url,
        speed=speed,
        since=since,
        generator=generator,
    )
    place = find_checkpoint(checkpoint, runs=settings.runs, models=settings.models)
    with paper_lock(settings.ledger_url) as lock, Ledger.open(settings.ledger_url, writable=True) as ledger:
        model = load_model(place)
        if new_run:
            _archive(ledger, settings)
        _trade(model, ledger, choice, settings, symbol=symbol, seed=seed, equity=equity, hold=lock.check)


def _trade(
    model: "ServedModel",
    ledger: "Ledger",
    choice: "FeedChoice",
    settings: Settings,
    *,
    symbol: str | None,
    seed: int | None,
    equity: float | None,
    hold: Callable[[], None],
) -> None:
    from service.feed.protocol import FeedRefused
    from service.paper.assembly import make_setup, make_source, make_terms
    from service.paper.loop import PaperTrader, Surroundings
    from service.paper.recovery import run_name
    from service.paper.stopping import Stop

    stop = Stop()
    with ledger.reading() as read:
        active = read.active_run()
        cursor = None if active is None else read.cursor(active.id, active.instrument, active.timeframe)
    setup = make_setup(model, symbol, active=active, seed=seed, equity=equity)
    source = make_source(setup, choice, cursor=None if cursor is None else cursor.last_bar_ts)
    trader = PaperTrader(
        setup,
        source.feed,
        ledger,
        make_terms(setup, source, choice),
        config=source.config,
        stop=stop,
        surroundings=Surroundings(
            local_ms=_local_ms,
            seconds=time.monotonic,
            spread=random.Random().random,
            new_run_id=lambda: run_name(_local_ms(), uuid.uuid4().hex[:6]),
            kill_switch=settings.state / KILL_SWITCH,
            backups=settings.state / BACKUPS,
            pid=os.getpid(),
            hold=hold,
        ),
        trade_from=source.trade_from,
    )
    log.info(
        "%s on %s %s from %s", model.label, setup.instrument.symbol, model.timeframe, source.feed.venue
    )  # fmt: skip
    try:
        with stop.listening():
            trader.run()
    except FeedRefused as error:
        raise ValueError(f"--symbol {setup.instrument.symbol}: {error}") from error
    finally:
        source.feed.close()


def _archive(ledger: "Ledger", settings: Settings) -> None:
    from service.ledger.archive import archive

    with ledger.reading() as read:
        run = read.active_run()
    if run is not None:
        kept = archive(ledger, run.id, directory=settings.state / BACKUPS, now_ms=_local_ms())
        log.info("run %s is archived; the ledger as it was: %s", run.id, kept)


def _report_health(settings: Settings, *, json_output: bool) -> None:
    from service.ledger.errors import LedgerError
    from service.ledger.store import Ledger
    from service.paper.heartbeat import PROCESS, Health, HeartbeatState, judge_health

    state: HeartbeatState | None = None
    try:
        with Ledger.open(settings.ledger_url, writable=False, busy_seconds=2.0) as ledger, ledger.reading() as read:
            beat = read.heartbeat(PROCESS)
        if beat is not None:
            state = HeartbeatState.from_json(beat.state_json)
        found = judge_health(state, beat_local_ms=None if beat is None else beat.ts_ms, now_local_ms=_local_ms())
    except (LedgerError, ValueError) as error:
        found = Health(False, str(error))
    if json_output:
        print_json({"healthy": found.healthy, "text": found.text, "state": None if state is None else asdict(state)})
    else:
        print(found.text)
    if not found.healthy:
        raise typer.Exit(UNHEALTHY)


def _local_ms() -> int:
    return time.time_ns() // 1_000_000
