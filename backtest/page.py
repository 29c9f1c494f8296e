"""The report as one HTML file: what a person reads. Nothing is fetched from anywhere, so it can be mailed and archived.

The page repeats report.json; it computes nothing of its own but words and charts.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np
from jinja2 import Environment, select_autoescape
from markupsafe import Markup

from backtest.charts import Chart, all_charts, as_payload, label
from backtest.evaluation import Band, Evaluation
from backtest.metrics import Metric

PERCENT = {
    "total_return",
    "annual_return",
    "annual_volatility",
    "max_drawdown",
    "var_95_daily",
    "cvar_95_daily",
    "exposure",
    "time_in_market",
    "hit_rate",
    "cost_drag",
}
COUNTS = {"trades", "open_trades"}
MONEY = {"final_equity", "mean_trade_pnl", "capacity"}

NAMES = {
    "final_equity": "Final equity",
    "total_return": "Total return",
    "annual_return": "Annual return",
    "annual_volatility": "Annual volatility",
    "sharpe": "Sharpe (daily, annualised)",
    "sharpe_per_bar": "Sharpe (per bar, annualised)",
    "sortino": "Sortino",
    "calmar": "Calmar",
    "max_drawdown": "Max drawdown",
    "max_drawdown_days": "Longest drawdown, days",
    "var_95_daily": "Daily VaR 95% (historical)",
    "cvar_95_daily": "Daily CVaR 95% (historical)",
    "skew": "Skew of daily returns",
    "kurtosis": "Kurtosis of daily returns (normal: 3)",
    "exposure": "Mean exposure",
    "time_in_market": "Time in the market",
    "turnover_per_year": "Turnover per year, × equity",
    "trades": "Closed round trips",
    "open_trades": "Still open",
    "hit_rate": "Hit rate",
    "profit_factor": "Profit factor",
    "mean_trade_pnl": "Mean profit per round trip",
    "mean_holding_bars": "Mean holding, bars",
    "mean_holding_hours": "Mean holding, hours",
    "cost_fee": "Fees",
    "cost_spread": "Spread and slippage",
    "cost_impact": "Own impact",
    "cost_latency": "Latency",
    "cost_funding": "Funding and interest",
    "cost_liquidation": "Liquidation",
    "cost_total": "All costs",
    "cost_drag": "Cost drag per year",
    "capacity": "Capacity",
    "liquidation_value": "Liquidation value",
}
GROUPS: Sequence[tuple[str, Sequence[str]]] = (
    ("Return", ("final_equity", "liquidation_value", "total_return", "annual_return")),
    (
        "Risk",
        (
            "annual_volatility",
            "max_drawdown",
            "max_drawdown_days",
            "var_95_daily",
            "cvar_95_daily",
            "skew",
            "kurtosis",
        ),
    ),
    ("Return for risk", ("sharpe", "sharpe_per_bar", "sortino", "calmar")),
    (
        "Trading",
        (
            "exposure",
            "time_in_market",
            "turnover_per_year",
            "trades",
            "open_trades",
            "hit_rate",
            "profit_factor",
            "mean_trade_pnl",
            "mean_holding_bars",
            "mean_holding_hours",
        ),
    ),
    (
        "Costs",
        (
            "cost_fee",
            "cost_spread",
            "cost_impact",
            "cost_latency",
            "cost_funding",
            "cost_liquidation",
            "cost_total",
            "cost_drag",
            "capacity",
        ),
    ),
)
COMPARED = ("total_return", "annual_return", "sharpe", "max_drawdown", "turnover_per_year", "trades", "cost_drag")
COMPARED_NAMES = ("Return", "Per year", "Sharpe", "Max drawdown", "Turnover/yr", "Round trips", "Cost drag/yr")
WIDE_CHARTS = ("overview", "calendar")
MISSING = "–"


@dataclass(frozen=True)
class Provenance:
    """Name and value of each line of the page's last table."""

    heading: str
    subtitle: str
    rows: Sequence[tuple[str, str]]


def number(name: str, value: float | None) -> str:
    """A metric's value as people read it."""
    if value is None:
        return MISSING
    if name in PERCENT:
        return f"{value:.1%}" if abs(value) >= 0.01 or value == 0 else f"{value:.2%}"
    if name in COUNTS:
        return f"{value:,.0f}"
    if name in MONEY or name.startswith("cost_") or name == "liquidation_value":
        if abs(value) >= 1e9:
            return f"{value:.1e}"
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:,.2f}"
    if name == "max_drawdown_days":
        return f"{value:,.0f}"
    return f"{value:,.2f}"


def interval_text(name: str, metric: Metric) -> str:
    """Its interval, or nothing."""
    return "" if metric.ci is None else f"{number(name, metric.ci[0])} to {number(name, metric.ci[1])}"


def band_text(name: str, band: Band | None) -> str:
    """Its spread over fill seeds, or nothing."""
    return "" if band is None else f"{number(name, band.p05)} to {number(name, band.p95)}"


def _tiles(evaluation: Evaluation) -> list[dict[str, str]]:
    metrics, timing = evaluation.metrics, evaluation.random_timing
    evidence, trials = evaluation.evidence, evaluation.trials
    total, sharpe = metrics["total_return"], metrics["sharpe"]
    held = evaluation.baseline_metrics.get("buy_and_hold", {}).get("total_return")
    beats, note = MISSING, ""
    if held is not None and held.value is not None and total.value is not None:
        beats = "yes" if total.value > held.value else "no"
        note = f"it made {held.value:+.1%}"
    fill = band_text("total_return", evaluation.fill_band.get("total_return"))
    dsr = MISSING if evidence.dsr is None else f"{evidence.dsr:.2f}"
    times = "once" if trials.touches == 1 else f"{trials.touches} times"
    return [
        {
            "name": "Total return",
            "value": number("total_return", total.value),
            "note": f"fills {fill}" if fill and evaluation.run.paths > 1 else "",
        },
        {
            "name": "Sharpe",
            "value": number("sharpe", sharpe.value),
            "note": f"[{interval_text('sharpe', sharpe)}]" if sharpe.ci else (sharpe.reason or ""),
        },
        {
            "name": "Max drawdown",
            "value": number("max_drawdown", metrics["max_drawdown"].value),
            "note": f"longest {number('max_drawdown_days', metrics['max_drawdown_days'].value)} days",
        },
        {
            "name": "Deflated Sharpe",
            "value": dsr,
            "note": f"for {trials.trials} trial{'' if trials.trials == 1 else 's'}; 0.95 convinces",
        },
        {
            "name": "p against random",
            "value": MISSING if timing is None else f"{timing.p_value:.3f}",
            "note": "below 0.05 convinces" if timing is not None else "not computed",
        },
        {"name": "Beats buy-and-hold?", "value": beats, "note": note},
        {"name": "Split looked at", "value": times, "note": "distinct evaluations so far"},
    ]


def _comparison(evaluation: Evaluation) -> dict[str, object]:
    def cells(metrics: Mapping[str, Metric], p_value: str) -> list[str]:
        return [*(number(name, metrics[name].value) for name in COMPARED), p_value]

    rows = [{"name": label("policy"), "cells": cells(evaluation.metrics, "")}]
    for name, metrics in evaluation.baseline_metrics.items():
        p_value = evaluation.spa.get(name)
        rows.append({"name": label(name), "cells": cells(metrics, MISSING if p_value is None else f"{p_value:.2f}")})
    timing = evaluation.random_timing
    if timing is not None:
        middle = f"{math.expm1(float(np.median(timing.log_growth))):.1%}"
        rows.append(
            {
                "name": f"Random timing (median of {len(timing.shifts)})",
                "cells": [middle, *[MISSING] * (len(COMPARED) - 1), f"{timing.p_value:.3f}"],
            }
        )
    text = (
        "All pay the same fees, spread, impact and interest, on the same draws. The last column is the chance of a "
        "lead this large if the strategy were no better than that row: Hansen's SPA test on daily returns; for random "
        "timing, the share of shifted runs that did at least as well."
    )
    return {"columns": [*COMPARED_NAMES, "p of lead"], "rows": rows, "text": text}


def _groups(evaluation: Evaluation) -> list[dict[str, object]]:
    groups: list[dict[str, object]] = []
    for title, names in GROUPS:
        rows = []
        for name in names:
            metric = evaluation.metrics.get(name)
            if metric is None:
                continue
            value = (
                number(name, metric.value)
                if metric.value is not None
                else Markup('<span class="reason">{}</span>').format(metric.reason)
            )
            rows.append(
                {
                    "name": NAMES[name],
                    "value": value,
                    "ci": interval_text(name, metric),
                    "band": band_text(name, evaluation.fill_band.get(name)),
                    "n": f"{metric.n:,}",
                }
            )
        groups.append({"name": title, "rows": rows})
    return groups


def _script_json(value: object) -> Markup:
    """JSON that cannot end its script element early."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"))


def plotly_javascript() -> str:
    """The library from the installed wheel, so the page needs no CDN."""
    source = files("plotly").joinpath("package_data", "plotly.min.js").read_text(encoding="utf-8")
    return source.replace("</script", "<\\/script")


def render_page(evaluation: Evaluation, provenance: Provenance) -> str:
    """The whole page as one string."""
    charts: list[Chart] = all_charts(evaluation)
    return render_template(
        "report.html",
        title=provenance.heading,
        heading=provenance.heading,
        subtitle=provenance.subtitle,
        skill=evaluation.verdict.skill,
        sentence=evaluation.verdict.sentence,
        checks=[
            {
                "mark": {True: "✓", False: "✗", None: "?"}[check.passed],
                "word": {True: "passed", False: "failed", None: "not available"}[check.passed],
                "text": check.text,
            }
            for check in evaluation.verdict.checks
        ],
        tiles=_tiles(evaluation),
        warnings=list(evaluation.warnings),
        comparison=_comparison(evaluation),
        charts=[
            {
                "identifier": chart.identifier,
                "title": chart.title,
                "text": chart.text,
                "height": chart.height,
                "wide": chart.identifier in WIDE_CHARTS,
            }
            for chart in charts
        ],
        fill_seeds=evaluation.run.paths,
        metric_groups=_groups(evaluation),
        provenance=provenance.rows,
        figures=_script_json(as_payload(charts)),
    )


def render_template(name: str, **context: Any) -> str:
    """Fill a template of this package; style, script and Plotly are inlined."""
    folder = files("backtest").joinpath("templates")
    environment = Environment(autoescape=select_autoescape(default=True), trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(folder.joinpath(name).read_text(encoding="utf-8")).render(
        style=Markup(folder.joinpath("report.css").read_text(encoding="utf-8")),
        script=Markup(folder.joinpath("report.js").read_text(encoding="utf-8")),
        plotly=Markup(plotly_javascript()),
        **context,
    )


def render_table_page(
    *,
    heading: str,
    subtitle: str,
    sentence: str,
    note: str,
    tables: Sequence[Mapping[str, object]],
    charts: Sequence[Chart],
) -> str:
    """A page of a verdict, tables and charts: what `compare` and `walk-forward` write.

    tables: each with title, columns, rows (name, cells), text and first_is_own.
    """
    return render_template(
        "compare.html",
        heading=heading,
        subtitle=subtitle,
        sentence=sentence,
        spa=note,
        tables=tables,
        charts=charts,
        figures=_script_json(as_payload(charts)),
    )
