"""The ledger of a paper run is the ledger of a backtest on the same bars, row by row, crashes or not."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from backtest.results import Run
from backtest.runner import run_policy
from data.bars import VALUE_COLUMNS, Bars
from market_env.market import Market
from service.ledger.integrity import require_sound
from service.ledger.store import Ledger, Writer
from service.model import ServedModel
from service.outlook import outlook
from service.schemas import ActRequest

START = 2000
ROWS = 90


@pytest.fixture(scope="module")
def bars(sample: Bars) -> Bars:
    return sample.slice(0, START + ROWS)


@pytest.fixture(scope="module")
def first(sample: Bars) -> int:
    """Open of the first bar that is traded."""
    return int(sample.timestamp[START])


def backtested(bench: Any, bars: Bars, first: int) -> Run:
    setup = bench.setup
    market = Market.prepare(
        bars, setup.model.features, setup.instrument, start=first, window=setup.model.window
    )  # fmt: skip
    return run_policy(setup.model.policy, market, setup.market, seeds=[setup.seed], guards=setup.guards)


def test_decisions_fills_and_equity_are_the_backtests_to_the_last_bit(
    make_bench: Callable[..., Any], replay_of: Callable[..., Any], served: ServedModel, bars: Bars, first: int
) -> None:
    bench = make_bench(served)
    bench.drain(bench.trader(replay_of(bench, bars, start=first), trade_from=first))
    run, rows = backtested(bench, bars, first), bench.rows()
    account, said = run.accounts, run.decisions
    assert said is not None

    assert [row["bar_ts"] for row in rows["decisions"]] == run.market.timestamp.tolist()
    for place, row in enumerate(rows["decisions"]):
        assert row["action"] == said.action[0, place]
        assert row["value"] == float(said.value[0, place])
        for name in ("policy", "prior", "q_values"):
            assert json.loads(row[f"{name}_json"]) == getattr(said, name)[0, place].tolist(), name
        assert row["outlook_json"] == json.dumps(
            [one.model_dump(mode="json") for one in outlook(said.chance_probabilities[0, place], served.meanings)]
        )
    for name in ("equity", "cash", "units"):
        assert [row[name] for row in rows["equity"]] == getattr(account, name)[0].tolist(), name
    assert [row["target_exposure"] for row in rows["orders"]] == account.target[0].tolist()
    filled = np.flatnonzero(account.qty_filled[0])
    assert len(filled) > 5
    assert [row["bar_ts"] for row in rows["fills"]] == run.market.timestamp[filled].tolist()
    pairs = {"quantity": "qty_filled", "price": "fill_price", "fee": "fee", "slippage_cost": "slippage_cost",
             "impact_cost": "impact_cost", "latency_pnl": "latency_pnl"}  # fmt: skip
    for mine, theirs in pairs.items():
        assert [row[mine] for row in rows["fills"]] == getattr(account, theirs)[0][filled].tolist(), mine
    for row, place in zip(rows["equity"], range(ROWS), strict=True):
        record = json.loads(row["record_json"])
        for name in ("funding", "gap_pnl", "bar_pnl", "bad_debt", "liquidation_cost"):
            assert record[name] == getattr(account, name)[0, place], name
    [report] = require_sound(bench.ledger)
    assert report.exact
    assert (report.bars, report.fills) == (ROWS, len(filled))


class Crash(BaseException):
    """The process is gone."""


@contextmanager
def crashing(ledger: Ledger, monkeypatch: pytest.MonkeyPatch, *, writes: int) -> Iterator[None]:
    """Let the process die at the `writes`-th write from now on: inside a transaction, before or after one."""
    left = [writes]
    with monkeypatch.context() as patched:
        for name in ("_insert_all", "_insert_numbered", "_put", "_change"):
            original = getattr(Writer, name)

            def counted(self: Writer, *arguments: Any, _original: Any = original, **options: Any) -> Any:
                left[0] -= 1
                if left[0] == 0:
                    raise Crash
                return _original(self, *arguments, **options)

            patched.setattr(Writer, name, counted)
        yield


def test_a_crash_at_any_write_changes_nothing(
    make_bench: Callable[..., Any],
    replay_of: Callable[..., Any],
    served: ServedModel,
    bars: Bars,
    first: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every write of two bars is a place to die at, and a hundred more at random."""
    whole = make_bench(served)
    whole.drain(whole.trader(replay_of(whole, bars, start=first), trade_from=first))
    bench = make_bench(served)
    random = np.random.default_rng(1)
    crashes = [*range(1, 40), *random.integers(1, 60, 60).tolist()]
    for writes in crashes:
        with crashing(bench.ledger, monkeypatch, writes=writes):
            try:
                bench.drain(bench.trader(replay_of(bench, bars, start=first), trade_from=first))
                break
            except Crash:
                pass
        require_sound(bench.ledger)
    else:
        bench.drain(bench.trader(replay_of(bench, bars, start=first), trade_from=first))
    mine, theirs = bench.rows(), whole.rows()
    for table in theirs:
        drop = {"id", "order_id", "decision_id", "since_ms"}
        assert [{k: v for k, v in row.items() if k not in drop} for row in mine[table]] == [
            {k: v for k, v in row.items() if k not in drop} for row in theirs[table]
        ], table


def test_act_says_of_a_recorded_bar_what_was_decided(
    make_bench: Callable[..., Any], replay_of: Callable[..., Any], served: ServedModel, bars: Bars, first: int
) -> None:
    """An outside caller sends the ledger's bars, and describes the account by what the ledger says of it."""
    bench = make_bench(served)
    trader = bench.trader(replay_of(bench, bars, start=first), trade_from=first)
    last_target, asked = 0.0, 0
    for _ in range(ROWS):
        trader.turn()
        rows = bench.rows()
        mark, decision, account = rows["equity"][-1], rows["decisions"][-1], rows["account"][0]
        window = rows["bars"][-served.required_bars :]
        if abs(mark["exposure"]) <= 1.0:  # a request says no more
            request = request_of(window, mark, json.loads(account["session_state_json"])["account"], last_target)
            [answer] = served.answer([served.sent(request, served.bars(request, 10**13))])
            assert not isinstance(answer, Exception)
            assert answer.action == decision["action"]
            assert answer.value == pytest.approx(decision["value"], rel=1e-5)
            assert answer.q_values == pytest.approx(json.loads(decision["q_values_json"]), rel=1e-4)
            told = [one["code"] for one in json.loads(decision["outlook_json"])]
            assert [one.code for one in outlook(answer.chance, served.meanings)] == told
            asked += 1
        last_target = rows["orders"][-1]["target_position"]
    assert asked > ROWS // 2


def request_of(
    window: list[dict[str, Any]], mark: dict[str, Any], state: dict[str, float], last_target: float
) -> ActRequest:
    """A request to /v1/act about the last bar. state: of the account, as the session remembers it."""
    account = {
        "equity": mark["equity"], "initial_equity": state["initial_equity"], "peak_equity": state["peak_equity"],
        "last_target": last_target, "last_fill_fraction": state["fill_fraction"],
    }  # fmt: skip
    if mark["units"]:
        account |= {"entry_price": state["entry_price"], "entry_volatility": state["entry_sigma"]}
        account["bars_held"] = int(state["bars_held"])
    table = [[row["ts"], *(row[name] for name in VALUE_COLUMNS)] for row in window]
    body = {"symbol": "sp500", "timeframe": "1d", "bars": table, "position": mark["exposure"], "account": account}
    return ActRequest.model_validate_json(json.dumps(body))
