"""The report: its contract, its bytes, its words, and the page as a browser sees it."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from backtest import report
from backtest.charts import thin
from backtest.evaluation import Evaluation
from backtest.runner import Stretch, run_policy
from backtest.study import Identity, Model, Terms, examine
from backtest.trials import TrialsLedger
from data.bars import Bars
from market_env.config import MarketConfig
from market_env.market import Market

CONTEXT = report.Context(
    subject="follow/<best>",
    kind="checkpoint",
    split="test",
    mode="stochastic",
    simulations=0,
    fingerprints={"data": "d", "config": "c", "checkpoint": "w", "features": None, "code": "0"},
    seeds={"fill": [0, 1, 2], "bootstrap": 0, "random_timing": 0},
    arguments=["run"],
    config={"name": "x"},
    created="2026-01-01T00:00:00Z",
)


@pytest.fixture
def evaluate_policy(
    noise_bars: Bars, market_of: Callable[..., Market], spot_config: MarketConfig, tmp_path: Path
) -> Callable[..., Evaluation]:
    def run(policy: Any, *, threads: int = 1) -> Evaluation:
        market = market_of(noise_bars)
        finished = run_policy(policy, market, spot_config, seeds=[0, 1, 2])
        terms = Terms(
            market=market,
            config=spot_config,
            history_close=np.asarray(noise_bars.close),
            stretch=Stretch.of(market),
            shifts=60,
            bootstrap_reps=200,
            threads=threads,
        )
        identity = Identity(key="k", subject="s", dataset="d", split="test")
        return examine(
            finished,
            terms,
            identity=identity,
            ledger=TrialsLedger(tmp_path / "trials.jsonl"),
            created="now",
            model=Model(discount=0.97, reward_scale=100.0, codes=None),
        )

    return run


@pytest.fixture
def evaluation(evaluate_policy: Callable[..., Evaluation], follow_last_return: Any) -> Evaluation:
    return evaluate_policy(follow_last_return)


def test_every_metric_follows_the_contract(evaluation: Evaluation) -> None:
    document = report.report_json(evaluation, CONTEXT)
    assert document["schema_version"] == 1
    for metrics in (document["metrics"], *(one["metrics"] for one in document["baselines"].values())):
        for name, metric in metrics.items():
            assert set(metric) == {"value", "ci", "n", "reason"}, name
            assert (metric["value"] is None) == (metric["reason"] is not None), name
    assert set(document["fingerprints"]) == {"data", "config", "checkpoint", "features", "code"}
    assert set(document["baselines"]) == {"buy_and_hold", "sma_cross", "flat"}
    json.dumps(document, allow_nan=False)


def test_the_same_inputs_give_the_same_bytes_whatever_the_threads(
    evaluate_policy: Callable[..., Evaluation], follow_last_return: Any
) -> None:
    first, again = (
        report.encode_json(report.report_json(evaluate_policy(follow_last_return, threads=threads), CONTEXT))
        for threads in (1, 3)
    )
    assert first == again


def test_interval_and_fill_band_are_kept_apart(evaluation: Evaluation) -> None:
    document = report.report_json(evaluation, CONTEXT)
    low, high = document["metrics"]["sharpe"]["ci"]
    band = document["fill_band"]["sharpe"]
    assert low < document["metrics"]["sharpe"]["value"] < high
    assert band["p05"] <= band["median"] <= band["p95"]
    assert high - low > band["p95"] - band["p05"]


def test_all_artefacts_are_written_and_agree(evaluation: Evaluation, tmp_path: Path) -> None:
    out = tmp_path / "out"
    document = report.write_artefacts(out, evaluation, CONTEXT)
    assert {path.name for path in out.iterdir()} == {
        "report.html", "report.json", "trades.csv", "fills.csv", "equity.parquet", "decisions.parquet",
        "config.resolved.yaml",
    }  # fmt: skip
    assert json.loads((out / "report.json").read_text()) == document
    equity = pd.read_parquet(out / "equity.parquet")
    own = equity[(equity["strategy"] == "policy") & (equity["fill_seed"] == document["representative_seed"])]
    assert own["equity"].iloc[-1] == document["metrics"]["final_equity"]["value"]
    trades = pd.read_csv(out / "trades.csv")
    mine = trades[trades["fill_seed"] == document["representative_seed"]]
    change = own["equity"].iloc[-1] - own["equity"].iloc[0]
    assert mine["pnl"].sum() == pytest.approx(change, abs=1e-6)


def test_an_interrupted_write_leaves_the_old_report(
    evaluation: Evaluation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    report.write_artefacts(out, evaluation, CONTEXT)
    before = (out / "report.json").read_bytes()

    def full(*_: object) -> bytes:
        raise OSError("disk full")

    monkeypatch.setattr(report, "encode_json", full)
    with pytest.raises(OSError, match="disk full"):
        report.write_artefacts(out, evaluation, replace(CONTEXT, created="later"))
    assert (out / "report.json").read_bytes() == before
    assert not list(out.glob(".*"))


def test_the_page_is_self_contained_and_small(evaluation: Evaluation) -> None:
    page = report.render_page(evaluation, report.provenance(evaluation, CONTEXT))
    assert len(page.encode()) < 8_000_000
    assert "follow/&lt;best&gt;" in page  # names are data, not markup
    head = page.split('<script type="application/json"')[0]
    assert "http" not in head
    assert "{{" not in head


def test_every_chart_has_a_line_of_text(evaluation: Evaluation) -> None:
    page = report.render_page(evaluation, report.provenance(evaluation, CONTEXT))
    assert page.count("<figcaption>") == page.count('class="plot"') >= 10
    assert "<figcaption></figcaption>" not in page


def test_costs_lower_the_result_in_the_sensitivity_table(evaluation: Evaluation) -> None:
    found = {scenario.name: scenario.total_return for scenario in evaluation.scenarios}
    assert found["no fees"] > found["as run"] > found["double fees"]
    final = evaluation.run.accounts.equity[:, -1]
    assert found["as run"] == pytest.approx(float(np.median(final)) / 10_000.0 - 1.0)


def test_thinning_keeps_the_ends_and_the_extremes() -> None:
    series = np.sin(np.arange(100_000) / 700.0)
    series[54_321] = 9.0
    series[12_345] = -9.0
    rows = thin(series, most=500)
    assert len(rows) <= 502
    assert {0, 12_345, 54_321, 99_999} <= set(rows.tolist())


def test_liquidation_value_is_below_equity_only_while_a_position_is_open(
    evaluate_policy: Callable[..., Evaluation], scripted: Any
) -> None:
    holds = evaluate_policy(scripted(lambda row: np.full(len(row), 2)))
    flat = evaluate_policy(scripted(lambda row: np.zeros(len(row), dtype=np.int64)))
    final, value = (holds.metrics[name].value for name in ("final_equity", "liquidation_value"))
    assert final is not None
    assert value is not None
    assert 0.0 < (final - value) / final < 0.01
    assert flat.metrics["liquidation_value"].value == flat.metrics["final_equity"].value


def test_a_policy_that_never_trades_is_reported_without_a_number_invented(
    evaluate_policy: Callable[..., Evaluation], scripted: Any
) -> None:
    evaluation = evaluate_policy(scripted(lambda row: np.zeros(len(row), dtype=np.int64)))
    assert not evaluation.verdict.skill
    assert evaluation.metrics["sharpe"].value is None
    assert evaluation.random_timing is None
    page = report.render_page(evaluation, report.provenance(evaluation, CONTEXT))
    assert "nan" not in page.split('<script type="application/json"')[0].lower().split()


@pytest.mark.browser
@pytest.mark.parametrize(("width", "dark"), [(1400, False), (390, True)])
def test_the_page_draws_every_chart_without_errors_or_requests(
    width: int, dark: bool, evaluation: Evaluation, tmp_path: Path, browser_page: Any
) -> None:
    report.write_artefacts(tmp_path / "out", evaluation, CONTEXT)
    scheme = "dark" if dark else "light"
    browser_page.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    browser_page.open((tmp_path / "out" / "report.html").as_uri(), width=width)
    drawn = browser_page.wait_for("document.documentElement && document.documentElement.dataset.drawn")
    charts = browser_page.evaluate("document.querySelectorAll('.plot').length")
    assert int(drawn) == charts
    assert browser_page.evaluate("document.querySelectorAll('.plot .main-svg').length") >= charts
    assert browser_page.evaluate("document.documentElement.dataset.theme") == scheme
    # Nothing sticks out sideways, on a phone as on a desk.
    assert browser_page.evaluate("document.documentElement.scrollWidth") <= width
    browser_page.evaluate("document.getElementById('log').click()")
    browser_page.evaluate("document.getElementById('theme').click()")
    other = "light" if dark else "dark"
    browser_page.wait_for(f"document.documentElement.dataset.theme === '{other}'")
    browser_page.evaluate("new Promise((done) => setTimeout(done, 300))")
    assert browser_page.errors() == []
    assert browser_page.requests() == []


def test_numbers_in_the_json_are_finite(evaluation: Evaluation) -> None:
    def walk(value: Any) -> None:
        if isinstance(value, dict):
            for one in value.values():
                walk(one)
        elif isinstance(value, list):
            for one in value:
                walk(one)
        elif isinstance(value, float):
            assert math.isfinite(value)

    walk(report.report_json(evaluation, CONTEXT))
