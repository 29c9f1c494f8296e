"""Two or more strategies on the same bars and the same draws: the differences, with their doubts.

Common random numbers: fill seed k of one contestant meets the same shocks as fill seed k of another, so differences
are far less noisy than the results themselves. Market luck is judged by resampling days of both together (stationary
bootstrap).

Legend: D daily returns, S fill seeds, R resamples.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from arch.bootstrap import StationaryBootstrap

from backtest.charts import MAX_POINTS, Chart, label, moments, rounded, thin
from backtest.evaluation import daily_returns
from backtest.metrics import Floats, Metric, sharpe_ratio
from backtest.page import COMPARED, COMPARED_NAMES, MISSING, number, render_table_page
from backtest.results import Run
from backtest.significance import block_length, interval, stepwise_superior, superior_predictive_ability

CONTESTANT_COLOURS = ("policy", "market", "rule", "prior", "down", "muted")
CONTESTANT_DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")


@dataclass(frozen=True)
class Difference:
    """One contestant less the reference.

    log_growth: per year, of the compared path, with a 95% interval over resampled days; sharpe: likewise, annualised.
    fill_low, fill_high: 5% and 95% of the difference in total log growth over the fill seeds. p_value: two-sided, of
    the growth.
    """

    name: str
    log_growth: float
    log_growth_interval: tuple[float, float]
    sharpe: float | None
    sharpe_interval: tuple[float, float] | None
    p_value: float
    fill_low: float
    fill_high: float


@dataclass(frozen=True)
class Comparison:
    """Contestants in the order given; the first is the reference of the differences."""

    runs: tuple[Run, ...]
    buy_and_hold: Run
    metrics: Mapping[str, Mapping[str, Metric]]
    differences: tuple[Difference, ...]
    spa_p_value: float
    superior: tuple[str, ...]


def compare(runs: Sequence[Run], buy_and_hold: Run, *, reps: int = 2000, seed: int = 0) -> Comparison:
    """Compare runs made on the same market and fill seeds. Raises ValueError where they are not."""
    first = runs[0]
    for run in (*runs[1:], buy_and_hold):
        if run.seeds != first.seeds or not np.array_equal(run.market.timestamp, first.market.timestamp):
            raise ValueError(f"{run.name} and {first.name} were not run on the same bars and fill seeds.")
    if len({run.name for run in runs}) < len(runs):
        raise ValueError(f"Contestants need different names, found {', '.join(run.name for run in runs)}.")
    path = first.representative
    returns = np.column_stack([daily_returns(run, path) for run in runs])
    hold = daily_returns(buy_and_hold, path)
    superior = stepwise_superior(hold, returns, reps=reps // 2, seed=seed) if len(runs) > 1 else []
    return Comparison(
        runs=tuple(runs),
        buy_and_hold=buy_and_hold,
        metrics={run.name: run.metrics(path) for run in (*runs, buy_and_hold)},
        differences=tuple(
            _difference(first, run, returns[:, 0], returns[:, index], reps=reps, seed=seed)
            for index, run in enumerate(runs)
            if index
        ),
        spa_p_value=superior_predictive_ability(hold, returns, reps=reps // 2, seed=seed),
        superior=tuple(runs[index].name for index in superior),
    )


def _difference(reference: Run, run: Run, theirs: Floats, ours: Floats, *, reps: int, seed: int) -> Difference:
    year = reference.market.days_per_year
    gap = np.log1p(np.maximum(ours, -1 + 1e-12)) - np.log1p(np.maximum(theirs, -1 + 1e-12))
    rows = np.arange(len(gap))
    # arch annotates whole block lengths but documents and uses the mean of a geometric one.
    resampler = StationaryBootstrap(block_length(gap), rows, seed=np.random.default_rng(seed))  # type: ignore[arg-type]
    growth, sharpe = np.empty(reps), np.full(reps, np.nan)
    for index, ((order,), _) in enumerate(resampler.bootstrap(reps)):
        growth[index] = gap[order].mean() * year
        one, other = sharpe_ratio(ours[order]), sharpe_ratio(theirs[order])
        if one is not None and other is not None:
            sharpe[index] = (one - other) * math.sqrt(year)
    # Two-sided: how often the resampled difference, centred on zero, is as far out as the measured one.
    measured = float(gap.mean() * year)
    centred = np.abs(growth - growth.mean())
    final = np.log(np.maximum(run.accounts.equity[:, -1], 1e-300) / run.accounts.equity[:, 0])
    base = np.log(np.maximum(reference.accounts.equity[:, -1], 1e-300) / reference.accounts.equity[:, 0])
    own, other = sharpe_ratio(ours), sharpe_ratio(theirs)
    both = own is not None and other is not None
    low, high = np.percentile(final - base, [5, 95])
    return Difference(
        name=run.name,
        log_growth=measured,
        log_growth_interval=interval(growth),
        sharpe=(own - other) * math.sqrt(year) if own is not None and other is not None else None,
        sharpe_interval=interval(sharpe) if both else None,
        p_value=float(1 + np.count_nonzero(centred >= abs(measured))) / (1 + reps),
        fill_low=float(low),
        fill_high=float(high),
    )


def sentence(comparison: Comparison) -> str:
    """What the comparison comes to, in words."""
    clear = [one for one in comparison.differences if one.p_value <= 0.05]
    reference = comparison.runs[0].name
    if not comparison.differences:
        return f"{reference} alone: nothing to compare with."
    if not clear:
        return f"No contestant can be told from {reference} on this history."
    parts = [
        f"{one.name} is {'ahead of' if one.log_growth > 0 else 'behind'} {reference} by {abs(one.log_growth):.1%} "
        f"a year (p = {one.p_value:.3f})"
        for one in clear
    ]
    return "; ".join(parts) + "."


def comparison_json(comparison: Comparison) -> dict[str, Any]:
    """The comparison as plain JSON types."""
    return {
        "reference": comparison.runs[0].name,
        "sentence": sentence(comparison),
        "metrics": {
            name: {key: metric.as_json() for key, metric in metrics.items()}
            for name, metrics in comparison.metrics.items()
        },
        "differences": [
            {
                "name": one.name,
                "log_growth_per_year": {"value": one.log_growth, "ci": list(one.log_growth_interval)},
                "sharpe": {
                    "value": one.sharpe,
                    "ci": None if one.sharpe_interval is None else list(one.sharpe_interval),
                },
                "p_value": one.p_value,
                "fill_band": {"p05": one.fill_low, "p95": one.fill_high},
            }
            for one in comparison.differences
        ],
        "spa_p_value_against_buy_and_hold": comparison.spa_p_value,
        "superior_to_buy_and_hold": list(comparison.superior),
    }


def equity_chart(comparison: Comparison) -> Chart:
    """Every contestant's equity on the compared path."""
    path = comparison.runs[0].representative
    traces = []
    for index, run in enumerate((*comparison.runs, comparison.buy_and_hold)):
        equity = run.accounts.equity[path]
        rows = thin(equity, most=MAX_POINTS)
        last = index == len(comparison.runs)
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "x": moments(run.market.close_time[rows]),
                "y": rounded(equity[rows]),
                "name": "Buy and hold" if last else run.name,
                "line": {
                    "color": "muted" if last else CONTESTANT_COLOURS[index % len(CONTESTANT_COLOURS)],
                    "dash": "dot" if last else CONTESTANT_DASHES[index % len(CONTESTANT_DASHES)],
                    "width": 1.5 if last else 2,
                },
            }
        )
    layout = {
        "yaxis": {"title": {"text": "Equity"}},
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        "hovermode": "x unified",
    }
    ends = ", ".join(
        f"{run.name} {run.accounts.equity[path, -1] / run.accounts.equity[path, 0] - 1:+.1%}" for run in comparison.runs
    )
    text = f"All on fill seed {comparison.runs[0].seeds[path]}, the same draws for each: {ends}."
    return Chart("equity", "Equity", text, {"data": traces, "layout": layout}, 440)


def difference_chart(comparison: Comparison) -> Chart | None:
    """Yearly growth of each contestant less the reference's, with intervals."""
    found = comparison.differences
    if not found:
        return None
    values = np.array([one.log_growth for one in found])
    lows = np.array([one.log_growth_interval[0] for one in found])
    highs = np.array([one.log_growth_interval[1] for one in found])
    figure = {
        "data": [
            {
                "type": "scatter",
                "mode": "markers",
                "x": rounded(values),
                "y": [one.name for one in found],
                "marker": {"color": "policy", "size": 11},
                "error_x": {
                    "type": "data",
                    "symmetric": False,
                    "array": rounded(highs - values),
                    "arrayminus": rounded(values - lows),
                    "color": "policy",
                    "thickness": 2,
                },
                "hovertemplate": "%{y}: %{x:.1%} a year<extra></extra>",
            }
        ],
        "layout": {
            "xaxis": {"tickformat": ".2~%", "title": {"text": f"Growth a year less {comparison.runs[0].name}'s"}},
            "yaxis": {"type": "category", "automargin": True},
        },
    }
    text = (
        "Bars are 95% intervals over resampled days of both together; a bar across zero means that the two cannot be "
        "told apart."
    )
    return Chart("differences", "Paired differences", text, figure, 120 + 60 * len(found))


def tables(comparison: Comparison) -> list[tuple[str, tuple[str, ...], list[tuple[str, list[str]]]]]:
    """(title, columns, rows of (name, cells)): the results, and the differences from the first contestant."""
    results = [
        (label(name), [number(key, metrics[key].value) for key in COMPARED])
        for name, metrics in comparison.metrics.items()
    ]
    reference = comparison.runs[0].name
    differences = []
    for one in comparison.differences:
        low, high = one.log_growth_interval
        sharpe = MISSING if one.sharpe is None else f"{one.sharpe:+.2f}"
        spread = MISSING
        if one.sharpe_interval is not None:
            spread = f"{one.sharpe_interval[0]:+.2f} to {one.sharpe_interval[1]:+.2f}"
        cells = [
            f"{one.log_growth:+.1%}",
            f"{low:+.1%} to {high:+.1%}",
            sharpe,
            spread,
            f"{one.p_value:.3f}",
            f"{one.fill_low:+.1%} to {one.fill_high:+.1%}",
        ]
        differences.append((one.name, cells))
    columns = ("Growth a year", "95% interval", "Sharpe", "95% interval", "p", "Fills, whole run")
    return [("Results", COMPARED_NAMES, results), (f"Difference from {reference}", columns, differences)]


def comparison_page(comparison: Comparison, heading: str, split: str) -> str:
    """One self-contained page."""
    texts = (
        f"On fill seed {comparison.runs[0].seeds[comparison.runs[0].representative]}; all met the same draws.",
        "Intervals and p from 2,000 stationary-bootstrap resamples of days, both resampled together; the last column "
        "is the 5% to 95% range of the difference in total log growth over the fill seeds.",
    )
    rows = comparison.runs[0].market
    found = [equity_chart(comparison), difference_chart(comparison)]
    better = ", ".join(comparison.superior) or "none"
    return render_table_page(
        heading=heading,
        subtitle=f"{split} split, {len(rows):,} bars, {len(comparison.runs[0].seeds)} fill seeds",
        sentence=sentence(comparison),
        note=(
            f"Better than buy-and-hold, allowing for having tried {len(comparison.runs)}: SPA p = "
            f"{comparison.spa_p_value:.2f}; singled out by StepM at 5%: {better}."
        ),
        tables=[
            {
                "title": title,
                "columns": columns,
                "rows": [{"name": name, "cells": cells} for name, cells in lines],
                "text": text,
                "first_is_own": False,
            }
            for (title, columns, lines), text in zip(tables(comparison), texts, strict=True)
        ],
        charts=[chart for chart in found if chart is not None],
    )
