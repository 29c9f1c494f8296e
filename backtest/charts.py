"""The report's charts as plain Plotly figures (dicts), each with a line of text that says what to see in it.

Colours are names ("policy", "market", ...) that the page resolves for light or dark; the palette is Okabe & Ito's,
which stays apart for colour-blind readers, and lines that could be confused also differ in dash. Long histories are
thinned here: the page shows every peak and trough, not every bar.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backtest.evaluation import Evaluation, drawdown_text
from backtest.metrics import Floats, Ints, daily_series, drawdown, rolling_sharpe
from backtest.results import Run

Figure = dict[str, Any]

MAX_POINTS = 1500  # per line; a screen has about as many columns
MAX_CANDLES = 700
MAX_MARKERS = 1500

LABELS = {
    "policy": "Strategy",
    "prior": "Its prior, no search",
    "buy_and_hold": "Buy and hold",
    "sma_cross": "SMA cross",
    "flat": "Flat",
}
COLOURS = {
    "policy": "policy",
    "prior": "prior",
    "buy_and_hold": "market",
    "sma_cross": "rule",
    "flat": "muted",
}
DASHES = {
    "policy": "solid",
    "prior": "dashdot",
    "buy_and_hold": "solid",
    "sma_cross": "dash",
    "flat": "dot",
}


@dataclass(frozen=True)
class Chart:
    """One figure: where it goes, its title, the line of text beside it, and its height in pixels."""

    identifier: str
    title: str
    text: str
    figure: Figure
    height: int = 320


def label(name: str) -> str:
    """What people call a strategy."""
    return LABELS.get(name, name.replace("_", " "))


def moments(time_ms: Ints) -> list[str]:
    """ISO times without a zone (Plotly draws them as they stand: UTC)."""
    return [str(moment) for moment in time_ms.astype("datetime64[ms]").astype("datetime64[s]")]


def rounded(values: NDArray[np.floating[Any]], digits: int = 6) -> list[float | None]:
    """Plain floats with few significant digits: a page is not an archive. NaN becomes a gap."""
    return [None if not math.isfinite(value) else float(f"{value:.{digits}g}") for value in values.tolist()]


def thin(*series: Floats, most: int = MAX_POINTS) -> Ints:
    """Rows that keep the shape of the given series: first, last, lowest and highest of each bucket."""
    rows = len(series[0])
    if rows <= most:
        return np.arange(rows, dtype=np.int64)
    buckets = max(most // (2 * len(series)), 1)
    edges = np.linspace(0, rows, buckets + 1).astype(np.int64)
    keep = {0, rows - 1}
    for one in series:
        for start, stop in pairwise(edges.tolist()):
            keep.add(int(start + np.argmin(one[start:stop])))
            keep.add(int(start + np.argmax(one[start:stop])))
    return np.array(sorted(keep), dtype=np.int64)


def line(x: list[str], y: list[float | None], name: str, key: str, **extra: Any) -> Figure:
    """A line trace of a strategy."""
    style = {"color": COLOURS.get(key, "muted"), "dash": DASHES.get(key, "solid"), "width": 1.6}
    if key == "policy":
        style["width"] = 2.2
    return {"type": "scatter", "mode": "lines", "x": x, "y": y, "name": name, "line": style, **extra}


def overview(evaluation: Evaluation) -> Chart:
    """Equity, drawdown, candles with fills, and position, on one time axis that zooms together."""
    run = evaluation.run
    path = run.representative
    close_time = run.market.close_time
    equity = run.accounts.equity[path]
    traces: list[Figure] = []
    if run.paths > 1:
        low, high = np.percentile(run.accounts.equity, [5, 95], axis=0)
        rows = thin(low, high)
        x = moments(close_time[rows])
        common = {"type": "scatter", "mode": "lines", "x": x, "line": {"width": 0}, "hoverinfo": "skip"}
        traces.append({**common, "y": rounded(low[rows]), "showlegend": False, "legendgroup": "band"})
        traces.append(
            {
                **common,
                "y": rounded(high[rows]),
                "fill": "tonexty",
                "fillcolor": "policyBand",
                "name": f"5–95% over {run.paths} fill seeds",
                "legendgroup": "band",
            }
        )
    for name, other in evaluation.baselines.items():
        values = other.accounts.equity[other.representative]
        rows = thin(values)
        traces.append(line(moments(close_time[rows]), rounded(values[rows]), label(name), name))
    rows = thin(equity)
    traces.append(line(moments(close_time[rows]), rounded(equity[rows]), label("policy"), "policy"))

    for name, values, key in [("Strategy drawdown", equity, "policy")] + (
        [
            (
                "Buy-and-hold drawdown",
                evaluation.baselines["buy_and_hold"].accounts.equity[
                    evaluation.baselines["buy_and_hold"].representative
                ],
                "buy_and_hold",
            )
        ]
        if "buy_and_hold" in evaluation.baselines
        else []
    ):
        depth = drawdown(values)
        rows = thin(depth)
        fill = {"fill": "tozeroy", "fillcolor": "policyBand"} if key == "policy" else {}
        traces.append(
            line(
                moments(close_time[rows]),
                rounded(depth[rows], 4),
                name,
                key,
                yaxis="y2",
                showlegend=False,
                hovertemplate="%{y:.1%}<extra>" + name + "</extra>",
                **fill,
            )
        )
    traces.extend(_candles(run))
    traces.extend(_fill_markers(run, path))
    exposure = run.exposure(path)
    rows = thin(exposure)
    traces.append(
        {
            "type": "scatter",
            "mode": "lines",
            "x": moments(close_time[rows]),
            "y": rounded(exposure[rows], 4),
            "yaxis": "y4",
            "name": "Position",
            "showlegend": False,
            "line": {"color": "policy", "width": 1, "shape": "hv"},
            "fill": "tozeroy",
            "fillcolor": "policyBand",
            "hovertemplate": "%{y:.0%} of equity<extra>Position</extra>",
        }
    )
    layout = {
        "xaxis": {"anchor": "y4", "rangeslider": {"visible": False}, "type": "date"},
        "yaxis": {"domain": [0.62, 1.0], "title": {"text": "Equity"}},
        "yaxis2": {"domain": [0.45, 0.59], "title": {"text": "Drawdown"}, "tickformat": ".2~%"},
        "yaxis3": {"domain": [0.16, 0.42], "title": {"text": "Price"}},
        "yaxis4": {"domain": [0.0, 0.13], "title": {"text": "Position"}, "tickformat": ".2~%"},
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        "hovermode": "x unified",
        "margin": {"t": 24},
    }
    total = evaluation.metrics["total_return"].value
    growth = f"{total:+.1%}" if total is not None else "undefined"
    fills = int(np.count_nonzero(run.accounts.qty_filled[path]))
    shown = f"{fills} fills" if fills <= MAX_MARKERS else f"the last {MAX_MARKERS} of {fills} fills"
    text = (
        f"Equity, drawdown, price with {shown}, and position share one time axis: drag to zoom, double-click to "
        f"reset. Total return {growth}. {drawdown_text(run)}"
    )
    return Chart("overview", "Equity and drawdown", text, {"data": traces, "layout": layout}, 860)


def _candles(run: Run) -> list[Figure]:
    """Bars of the market, several to a candle where there are too many to see."""
    market = run.market
    per = max(1, math.ceil(len(market) / MAX_CANDLES))
    start = np.arange(0, len(market), per)
    last = np.minimum(start + per, len(market)) - 1
    return [
        {
            "type": "candlestick",
            "x": moments(market.timestamp[start]),
            "open": rounded(market.open[start]),
            "high": rounded(np.maximum.reduceat(market.high, start)),
            "low": rounded(np.minimum.reduceat(market.low, start)),
            "close": rounded(market.close[last]),
            "yaxis": "y3",
            "name": "Price" if per == 1 else f"Price ({per} bars a candle)",
            "showlegend": False,
            "increasing": {"line": {"color": "up", "width": 1}, "fillcolor": "up"},
            "decreasing": {"line": {"color": "down", "width": 1}, "fillcolor": "down"},
            "hoverinfo": "skip" if per > 1 else "all",
        }
    ]


def _fill_markers(run: Run, path: int) -> list[Figure]:
    """Triangles where orders filled."""
    filled = run.accounts.qty_filled[path]
    traces = []
    for side, name, symbol, colour in (
        (1, "Buy", "triangle-up", "buy"),
        (-1, "Sell", "triangle-down", "sell"),
    ):
        rows = np.flatnonzero(np.sign(filled) == side)[-MAX_MARKERS:]
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "x": moments(run.market.timestamp[rows]),
                "y": rounded(run.accounts.fill_price[path][rows]),
                "yaxis": "y3",
                "name": name,
                "legendgroup": name,
                "marker": {
                    "symbol": symbol,
                    "size": 8,
                    "color": colour,
                    "line": {"width": 0.5, "color": "page"},
                },
                "hovertemplate": f"{name} %{{y}}<extra></extra>",
            }
        )
    return traces


def actions(evaluation: Evaluation) -> Chart:
    """How often each target exposure was asked for."""
    targets = evaluation.run.accounts.target
    known = targets[np.isfinite(targets)]
    levels, counts = np.unique(np.round(known, 4), return_counts=True)
    if len(levels) > 15:
        counts, edges = np.histogram(known, bins=15)
        levels = (edges[:-1] + edges[1:]) / 2
    share = counts / max(counts.sum(), 1)
    exposure = evaluation.metrics["exposure"].value or 0.0
    held = evaluation.metrics["time_in_market"].value or 0.0
    if len(share):
        most = int(np.argmax(share))
        text = (
            f"Asked most often for {levels[most]:+.0%} of equity ({share[most]:.0%} of decisions). In the market "
            f"{held:.0%} of the time, with {exposure:.0%} of equity on average."
        )
    else:
        text = "No decision asked for a position."
    figure = {
        "data": [
            {
                "type": "bar",
                "x": [f"{level:+.0%}" for level in levels],
                "y": rounded(share, 4),
                "marker": {"color": "policy"},
                "hovertemplate": "%{x}: %{y:.1%} of decisions<extra></extra>",
            }
        ],
        "layout": {
            "xaxis": {"type": "category", "title": {"text": "Target exposure"}},
            "yaxis": {"tickformat": ".2~%", "title": {"text": "Share of decisions"}},
        },
    }
    return Chart("actions", "What it asked for", text, figure)


def rolling(evaluation: Evaluation) -> Chart | None:
    """Sharpe ratio over the last half year of days."""
    run = evaluation.run
    window = max(run.market.days_per_year // 2, 20)
    traces, last = [], None
    for name, other in [("buy_and_hold", evaluation.baselines.get("buy_and_hold")), ("policy", run)]:
        if other is None:
            continue
        daily = daily_series(
            run.market.close_time,
            other.accounts.equity[other.representative],
            days_per_year=run.market.days_per_year,
        )
        values = rolling_sharpe(daily.returns, window, run.market.days_per_year)
        if not np.isfinite(values).any():
            continue
        rows = thin(np.nan_to_num(values))
        traces.append(line(moments(daily.day[1:][rows] * 86_400_000), rounded(values[rows], 4), label(name), name))
        last = values[np.isfinite(values)] if name == "policy" else last
    if last is None:
        return None
    text = (
        f"Sharpe ratio of the last {window} days, annualised: above zero {np.mean(last > 0):.0%} of the time, "
        f"from {last.min():.2f} to {last.max():.2f}."
    )
    layout = {
        "yaxis": {"title": {"text": "Rolling Sharpe"}, "zeroline": True},
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        "hovermode": "x unified",
    }
    return Chart("rolling", "Rolling Sharpe", text, {"data": traces, "layout": layout})


def calendar(evaluation: Evaluation) -> Chart | None:
    """Monthly returns as a heat map; daily ones for less than three months."""
    run = evaluation.run
    daily = daily_series(
        run.market.close_time,
        run.accounts.equity[run.representative],
        days_per_year=run.market.days_per_year,
    )
    returns, days = daily.returns, daily.day[1:]
    if len(returns) == 0:
        return None
    dates = days.astype("datetime64[D]")
    if days[-1] - days[0] < 92:
        week = (days + 3) // 7
        rows_keys, columns = week - week[0], (days + 3) % 7
        names = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"]
        labels = [str(dates[np.argmax(rows_keys == key)]) for key in np.unique(rows_keys)]
        what, rows_keys = "day", np.searchsorted(np.unique(rows_keys), rows_keys)
        growth = returns
    else:
        month = dates.astype("datetime64[M]").astype(int)
        cells = np.unique(month)
        growth = np.array([np.prod(1.0 + returns[month == cell]) - 1.0 for cell in cells])
        years = cells // 12 + 1970
        rows_keys, columns = years - years[0], cells % 12
        labels = [str(year) for year in range(years[0], years[-1] + 1)]
        names = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]
        what = "month"
    grid = np.full((len(labels), len(names)), np.nan)
    grid[rows_keys, columns] = growth
    bound = float(np.abs(growth).max()) or 1.0
    cells_text = [
        ["" if not math.isfinite(v) else f"{v + 0.0:.1%}".replace("-0.0%", "0.0%") for v in row]
        for row in grid.tolist()
    ]
    figure = {
        "data": [
            {
                "type": "heatmap",
                "x": names,
                "y": labels,
                "z": [rounded(row, 4) for row in grid],
                "text": cells_text,
                "texttemplate": "%{text}",
                "textfont": {"size": 11},
                "hovertemplate": "%{y} %{x}: %{text}<extra></extra>",
                "zmin": -bound,
                "zmax": bound,
                "colorscale": "diverging",
                "showscale": False,
                "xgap": 2,
                "ygap": 2,
            }
        ],
        "layout": {
            "yaxis": {"autorange": "reversed", "type": "category", "showgrid": False},
            "xaxis": {"side": "top", "type": "category", "showgrid": False},
            "margin": {"t": 30},
        },
    }
    text = (
        f"{np.mean(growth > 0):.0%} of {len(growth)} {what}s made money; best {growth.max():+.1%}, "
        f"worst {growth.min():+.1%}."
    )
    return Chart("calendar", f"Returns by {what}", text, figure, max(150, min(90 + 34 * len(labels), 620)))


def trades(evaluation: Evaluation) -> list[Chart]:
    """Profit per round trip, and how far each went against and for the position."""
    trips = evaluation.run.trips(evaluation.run.representative)
    closed = ~trips.open
    returns = trips.return_fraction[closed]
    if len(returns) == 0:
        return []
    wins = returns > 0
    histogram = {
        "data": [
            {
                "type": "histogram",
                "x": rounded(returns[mask], 4),
                "name": name,
                "marker": {"color": colour},
                "xbins": _bins(returns),
                "hovertemplate": "%{y} trades at %{x:.1%}<extra></extra>",
            }
            for mask, name, colour in ((wins, "Winners", "up"), (~wins, "Losers", "down"))
        ],
        "layout": {
            "barmode": "stack",
            "xaxis": {"tickformat": ".2~%", "title": {"text": "Net return per round trip"}},
            "yaxis": {"title": {"text": "Trades"}},
            "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        },
    }
    text = (
        f"{wins.mean():.0%} of {len(returns)} closed round trips won; mean {returns.mean():+.2%}, "
        f"best {returns.max():+.1%}, worst {returns.min():+.1%}, all costs included."
    )
    charts = [Chart("trade_pnl", "Profit per round trip", text, histogram)]
    last = np.flatnonzero(closed)[-MAX_MARKERS:]
    scatter = {
        "data": [
            {
                "type": "scatter",
                "mode": "markers",
                "x": rounded(trips.mae[last][mask], 4),
                "y": rounded(trips.mfe[last][mask], 4),
                "name": name,
                "marker": {"color": colour, "symbol": symbol, "size": 7, "opacity": 0.75},
                "hovertemplate": "against %{x:.1%}, for %{y:.1%}<extra></extra>",
            }
            for mask, name, colour, symbol in (
                (trips.pnl[last] > 0, "Winners", "up", "circle"),
                (trips.pnl[last] <= 0, "Losers", "down", "x"),
            )
        ],
        "layout": {
            "xaxis": {"tickformat": ".2~%", "title": {"text": "Worst price while held"}},
            "yaxis": {"tickformat": ".2~%", "title": {"text": "Best price while held"}},
            "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        },
    }
    text = (
        f"A typical round trip went {np.median(trips.mae[closed]):.1%} against the position and "
        f"{np.median(trips.mfe[closed]):+.1%} in its favour before it closed."
    )
    charts.append(Chart("excursion", "How far trades went each way", text, scatter))
    return charts


def _bins(values: Floats, count: int = 40) -> dict[str, float]:
    """Shared histogram bins with an edge at zero."""
    size = float(f"{max(float(np.ptp(values)), 1e-6) / count:.3g}")
    start = math.floor(float(values.min()) / size) * size
    return {"start": start, "end": math.ceil(float(values.max()) / size) * size + size, "size": size}


def _marked_histogram(values: Floats, marks: Sequence[tuple[float, str, str]], title: str, tick: str) -> Figure:
    """A histogram with vertical lines; marks are (where, label, colour)."""
    counts, edges = np.histogram(values, bins=40)
    return {
        "data": [
            {
                "type": "bar",
                "x": rounded((edges[:-1] + edges[1:]) / 2),
                "y": [int(count) for count in counts],
                "width": float(edges[1] - edges[0]),
                "marker": {"color": "muted", "line": {"width": 0}},
                "hovertemplate": "%{y} at %{x}<extra></extra>",
            }
        ],
        "layout": {
            "xaxis": {"title": {"text": title}, "tickformat": tick},
            "yaxis": {"title": {"text": "Count"}},
            "bargap": 0,
            "margin": {"t": 40},
            "shapes": [
                {
                    "type": "line",
                    "x0": where,
                    "x1": where,
                    "y0": 0,
                    "y1": 1,
                    "yref": "paper",
                    "line": {
                        "color": colour,
                        "width": 3 if colour == "policy" else 1.5,
                        "dash": "solid" if colour == "policy" else "dot",
                    },
                }
                for where, _, colour in marks
            ],
            "annotations": [
                {
                    "x": where,
                    "y": 1.0,
                    "yref": "paper",
                    "yanchor": "bottom",
                    "text": text,
                    "showarrow": False,
                    "font": {"color": colour, "size": 12},
                }
                for where, text, colour in marks
                if text
            ],
        },
    }


def luck(evaluation: Evaluation) -> list[Chart]:
    """The random-timing histogram with the strategy's line, and the bootstrap of its Sharpe ratio."""
    charts = []
    timing = evaluation.random_timing
    if timing is not None:
        figure = _marked_histogram(
            np.expm1(timing.log_growth),
            [(math.expm1(timing.own), "strategy", "policy")],
            "Total return",
            ".2~%",
        )
        better = float(np.mean(timing.log_growth >= timing.own))
        text = (
            f"The same positions moved to {len(timing.shifts)} other times: {better:.0%} of them did at least as "
            f"well as the strategy (p = {timing.p_value:.3f}). The line has to stand clear on the right for "
            "its timing to be worth anything."
        )
        charts.append(Chart("random", "Against its own positions at random times", text, figure))
    bootstrap, sharpe = evaluation.bootstrap, evaluation.metrics["sharpe"]
    if bootstrap is not None and np.isfinite(bootstrap.sharpe).any() and sharpe.ci is not None:
        scale = math.sqrt(evaluation.run.market.days_per_year)
        samples = bootstrap.sharpe[np.isfinite(bootstrap.sharpe)] * scale
        low, high = sharpe.ci
        measured = sharpe.value or 0.0
        # Two labels on one spot would be unreadable; the line at zero explains itself.
        apart = abs(measured) > 0.12 * float(np.ptp(samples))
        marks = [(low, "", "ink"), (high, "", "ink"), (0.0, "zero" if apart else "", "ink")]
        marks.append((measured, "measured", "policy"))
        text = (
            f"Had history been dealt again in blocks of about {bootstrap.block_length:.0f} days, its Sharpe would "
            f"lie between {low:.2f} and {high:.2f} in 95% of cases, and below zero in {np.mean(samples < 0):.0%}."
        )
        charts.append(
            Chart(
                "bootstrap",
                "How uncertain the Sharpe ratio is",
                text,
                _marked_histogram(samples, marks, "Sharpe", ".1f"),
            )
        )
    return charts


def fold_bars(evaluation: Evaluation) -> Chart | None:
    """Return of each stretch beside buy-and-hold."""
    folds = evaluation.folds
    if len(folds) < 2:
        return None
    names = [fold.label for fold in folds]
    figure = {
        "data": [
            {
                "type": "bar",
                "x": names,
                "y": [float(f"{getattr(fold, field):.6g}") for fold in folds],
                "name": label(key),
                "marker": {"color": COLOURS[key], "pattern": {"shape": pattern}},
                "hovertemplate": "%{x}: %{y:.1%}<extra>" + label(key) + "</extra>",
            }
            for field, key, pattern in (
                ("total_return", "policy", ""),
                ("buy_and_hold", "buy_and_hold", "/"),
            )
        ],
        "layout": {
            "barmode": "group",
            "xaxis": {"type": "category"},
            "yaxis": {"tickformat": ".2~%", "title": {"text": "Return"}},
            "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        },
    }
    ahead = sum(fold.total_return > fold.buy_and_hold for fold in folds)
    positive = sum(fold.total_return > 0 for fold in folds)
    text = f"Positive in {positive} of {len(folds)} stretches, ahead of buy-and-hold in {ahead}."
    return Chart("folds", "Stretch by stretch", text, figure)


COST_LABELS = {
    "fee": "Fees",
    "spread": "Spread and slippage",
    "impact": "Own impact",
    "latency": "Latency",
    "funding": "Funding and interest",
    "liquidation": "Liquidation",
}


def cost_bars(evaluation: Evaluation) -> Chart | None:
    """What trading cost, by kind, as a share of the initial capital."""
    run = evaluation.run
    costs = run.costs(run.representative)
    start = float(run.accounts.equity[run.representative, 0])
    if costs.total == 0.0:
        return None
    parts = {COST_LABELS[name]: value / start for name, value in costs.as_dict().items() if value != 0.0}
    names = list(parts)
    figure = {
        "data": [
            {
                "type": "bar",
                "orientation": "h",
                "y": names[::-1],
                "x": [float(f"{parts[name]:.6g}") for name in names[::-1]],
                "marker": {"color": "rule"},
                "hovertemplate": "%{y}: %{x:.2%} of initial capital<extra></extra>",
            }
        ],
        "layout": {
            "xaxis": {"tickformat": ".2~%", "title": {"text": "Share of initial capital"}},
            "yaxis": {"automargin": True},
        },
    }
    drag = evaluation.metrics["cost_drag"].value
    most = max(parts, key=lambda name: parts[name])
    text = (
        f"All costs together took {costs.total / start:.2%} of the initial capital; the largest part is {most.lower()}."
    )
    if drag is not None:
        text += f" Growth would have been {drag:.2%} a year higher without them."
    return Chart("costs", "What trading cost", text, figure, 260)


def sensitivity(evaluation: Evaluation) -> Chart | None:
    """The same decisions under other terms."""
    if not evaluation.scenarios:
        return None
    names = [scenario.name for scenario in evaluation.scenarios]
    returns = np.array([scenario.total_return for scenario in evaluation.scenarios])
    figure = {
        "data": [
            {
                "type": "bar",
                "orientation": "h",
                "y": names[::-1],
                "x": rounded(returns[::-1]),
                "marker": {"color": ["policy" if name == "as run" else "muted" for name in reversed(names)]},
                "hovertemplate": "%{y}: %{x:.1%}<extra></extra>",
            }
        ],
        "layout": {
            "xaxis": {"tickformat": ".2~%", "title": {"text": "Total return"}},
            "yaxis": {"automargin": True},
        },
    }
    text = (
        f"The same decisions under other terms end between {returns.min():+.1%} and {returns.max():+.1%} "
        "(median over the fill seeds)."
    )
    return Chart("sensitivity", "If the terms had been different", text, figure)


def calibration(evaluation: Evaluation) -> list[Chart]:
    """Predicted value against what followed, and the PIT histogram of the predicted returns."""
    found = evaluation.calibration
    if found is None:
        return []
    charts = []
    if found.value_bins:
        predicted = np.array([entry[0] for entry in found.value_bins])
        realised = np.array([entry[1] for entry in found.value_bins])
        ends = [float(min(predicted.min(), realised.min())), float(max(predicted.max(), realised.max()))]
        figure = {
            "data": [
                {
                    "type": "scatter",
                    "mode": "lines",
                    "x": ends,
                    "y": ends,
                    "line": {"color": "muted", "dash": "dot"},
                    "hoverinfo": "skip",
                    "showlegend": False,
                },
                {
                    "type": "scatter",
                    "mode": "lines+markers",
                    "x": rounded(predicted),
                    "y": rounded(realised),
                    "marker": {"color": "policy", "size": 8},
                    "line": {"color": "policy"},
                    "showlegend": False,
                    "hovertemplate": "predicted %{x:.3g}, came %{y:.3g}<extra></extra>",
                },
            ],
            "layout": {
                "xaxis": {"title": {"text": "Predicted value"}},
                "yaxis": {"title": {"text": "What followed"}},
            },
        }
        correlation = found.value_correlation
        told = "is undefined" if correlation is None else f"is {correlation:.2f}"
        text = (
            "Decisions grouped by predicted value, against the reward that followed; the dotted line is a perfect "
            f"forecast. Their correlation {told}."
        )
        charts.append(Chart("value_calibration", "Did it know what it was worth?", text, figure))
    if found.pit is not None:
        share = np.array(found.pit)
        count = len(share)
        figure = {
            "data": [
                {
                    "type": "bar",
                    "x": rounded((np.arange(count) + 0.5) / count),
                    "y": rounded(share),
                    "width": 1.0 / count,
                    "marker": {"color": "policy"},
                    "hovertemplate": "%{y:.1%}<extra></extra>",
                }
            ],
            "layout": {
                "xaxis": {"title": {"text": "Predicted probability of a lower return"}, "range": [0, 1]},
                "yaxis": {"title": {"text": "Share of bars"}, "tickformat": ".2~%"},
                "bargap": 0.05,
                "shapes": [
                    {
                        "type": "line",
                        "x0": 0,
                        "x1": 1,
                        "y0": 1.0 / count,
                        "y1": 1.0 / count,
                        "line": {"color": "ink", "dash": "dot", "width": 1.5},
                    }
                ],
            },
        }
        scores = ", ".join(f"{name.replace('_', ' ')} {score:.4g}" for name, score in found.crps.items())
        text = (
            "Where the next bar's return fell in the predicted distribution; level with the dotted line is calibrated, "
            f"a hump means too cautious, a bowl too sure. CRPS (lower is better): {scores}."
        )
        charts.append(Chart("pit", "Did it know what might come?", text, figure))
    return charts


def all_charts(evaluation: Evaluation) -> list[Chart]:
    """Every chart there is something to draw for, in the page's order."""
    found: list[Chart | None] = [
        overview(evaluation),
        actions(evaluation),
        rolling(evaluation),
        calendar(evaluation),
        *trades(evaluation),
        *luck(evaluation),
        fold_bars(evaluation),
        cost_bars(evaluation),
        sensitivity(evaluation),
        *calibration(evaluation),
    ]
    return [chart for chart in found if chart is not None]


def as_payload(charts: Sequence[Chart]) -> Mapping[str, Figure]:
    """Figures by identifier, for the page's script."""
    return {chart.identifier: chart.figure for chart in charts}
