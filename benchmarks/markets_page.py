"""Tables and figure of kept runs on real bars.

    python -m benchmarks.markets_page RUNS [--write docs/results.md] [--figure var/markets.html]

RUNS is the --out folder of benchmarks/markets.py. Prints Markdown; --write puts it between the lines
`<!-- measured -->` and `<!-- /measured -->` of a page, so that no figure there was typed by hand.
"""

import argparse
import json
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.markets import DATASETS

Json = dict[str, Any]
BEGIN, END = "<!-- measured -->", "<!-- /measured -->"
AGENTS = {
    "smu0": "smu0",
    "prior": "… its prior, no search",
    "codes1": "… with one chance code",
    "ppo": "PPO",
    "dqn": "DQN",
    "buy_and_hold": "buy and hold",
    "sma_cross": "SMA 50/200",
}
TRAINED = ("smu0", "codes1", "ppo", "dqn")
COLOURS = {"smu0": "#1f5fbf", "prior": "#7aa3dd", "codes1": "#a07ad0", "ppo": "#c2571a", "dqn": "#4f8a3d"}
OTHER = "#777777"


def kept(folder: Path) -> dict[str, dict[str, list[Json]]]:
    """Metrics of every run, by data set and agent, with what each brings along. Raises FileNotFoundError when there
    are none."""
    found: dict[str, dict[str, list[Json]]] = defaultdict(lambda: defaultdict(list))
    for file in sorted(folder.glob("*.json")):
        run = json.loads(file.read_text())
        dataset, agent = run["job"]["dataset"], run["job"]["agent"]
        report = run["report"]
        found[dataset][agent].append({**report, "training": run["training"], "seed": run["job"]["seed"]})
        if agent != "smu0":
            continue
        for name, baseline in report["baselines"].items():
            # Buy and hold and the like do not depend on the seed: one row is enough.
            if name in AGENTS and (name == "prior" or not found[dataset][name]):
                found[dataset][name].append(baseline)
    if not found:
        raise FileNotFoundError(f"{folder}: expected results of benchmarks.markets --out, found none")
    return {name: dict(found[name]) for name in DATASETS if name in found}


def _values(runs: Sequence[Json], metric: str) -> list[float]:
    values = [run["metrics"][metric]["value"] for run in runs]
    return [value for value in values if value is not None]


def _cell(runs: Sequence[Json], metric: str, show: Callable[[float], str]) -> str:
    """Mean over seeds and their range; one run: with the 95% interval of its bootstrap, where there is one."""
    values = _values(runs, metric)
    if not values:
        return "–"
    if len(values) > 1:
        return f"{show(statistics.mean(values))} ({show(min(values))} to {show(max(values))})"
    interval = runs[0]["metrics"][metric].get("ci")
    return show(values[0]) + (f" [{show(interval[0])}, {show(interval[1])}]" if interval else "")


def _percent(value: float) -> str:
    return f"{value:+.1%}"


def results_table(found: dict[str, dict[str, list[Json]]]) -> str:
    """One row per data set and agent."""
    lines = [
        "| test split | agent | seeds | return | Sharpe | deepest drawdown | turnover a year | p, random timing |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for dataset, agents in found.items():
        title = DATASETS[dataset].title
        for agent, shown in AGENTS.items():
            runs = agents.get(agent)
            if not runs:
                continue
            timings = [(run.get("significance") or {}).get("random_timing") for run in runs]
            p_values = [timing["p_value"] for timing in timings if timing]
            cells = [
                title,
                shown,
                str(len(runs)) if "seed" in runs[0] or agent == "prior" else "",
                _cell(runs, "total_return", _percent),
                _cell(runs, "sharpe", lambda value: f"{value:.2f}"),
                _cell(runs, "max_drawdown", _percent),
                _cell(runs, "turnover_per_year", lambda value: f"{value:,.1f}"),
                ", ".join(f"{value:.3f}" for value in p_values),
            ]
            lines.append("| " + " | ".join(cells) + " |")
            title = ""
    return "\n".join(lines)


def outlook_table(found: dict[str, dict[str, list[Json]]]) -> str:
    """CRPS of the next bar's return as the chance nodes foresee it, beside two baselines, and the codes in use."""
    lines = [
        "| test split | seed | CRPS, chance codes | unconditional | EWMA volatility | value against what followed, r |",
        "|---|---|---|---|---|---|",
    ]
    for dataset, agents in found.items():
        for run in agents.get("smu0", []):
            calibration = run.get("calibration") or {}
            scores = calibration.get("crps") or {}
            cells = [DATASETS[dataset].title, str(run["seed"])]
            scored = [scores.get(name) for name in ("model", "unconditional", "ewma_volatility")]
            cells += ["–" if value is None else f"{1e4 * value:.2f} bp" for value in scored]
            correlation = calibration.get("value_correlation")
            cells.append("–" if correlation is None else f"{correlation:+.3f}")
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def training_table(found: dict[str, dict[str, list[Json]]]) -> str:
    """What each agent was given."""
    lines = ["| test split | agent | seconds of training | environment steps |", "|---|---|---|---|"]
    for dataset, agents in found.items():
        for agent in TRAINED:
            trained = [run["training"] for run in agents.get(agent, [])]
            if trained:
                seconds = ", ".join(f"{one['seconds']:.0f}" for one in trained)
                steps = ", ".join(f"{one['env_steps']:,}" for one in trained)
                lines.append(f"| {DATASETS[dataset].title} | {AGENTS[agent]} | {seconds} | {steps} |")
    return "\n".join(lines)


def trials_table(found: dict[str, dict[str, list[Json]]]) -> str:
    """How often each test split was looked at, and how good the best of as many worthless agents would look."""
    lines = [
        "| test split | agents judged on it so far | Sharpe of the best, were all worthless | best Sharpe here |",
        "|---|---|---|---|",
    ]
    for dataset, agents in found.items():
        judged = [run for agent in TRAINED for run in agents.get(agent, [])]
        last = max(judged, key=lambda run: run["trials"]["trials"])  # the ledger grows with every look
        expected = last["significance"]["expected_maximum_daily_sharpe"] * math.sqrt(last["market"]["days_per_year"])
        best, name = max((sharpe, agent) for agent in TRAINED for sharpe in _values(agents.get(agent, []), "sharpe"))
        cells = [
            DATASETS[dataset].title,
            str(last["trials"]["trials"]),
            f"{expected:.2f}",
            f"{best:.2f} ({AGENTS[name]})",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def page(found: dict[str, dict[str, list[Json]]]) -> str:
    """All tables."""
    return "\n\n".join((results_table(found), trials_table(found), outlook_table(found), training_table(found)))


def write(text: str, path: Path) -> None:
    """Put the text between the marks of a page. Raises ValueError where they are missing."""
    content = path.read_text()
    if content.count(BEGIN) != 1 or content.count(END) != 1:
        raise ValueError(f"{path}: expected one line {BEGIN} and one line {END}, found others; add them where it goes")
    head, rest = content.split(BEGIN)
    path.write_text(f"{head}{BEGIN}\n\n{text}\n\n{END}{rest.split(END)[1]}")


def figure(found: dict[str, dict[str, list[Json]]], path: Path) -> None:
    """Return against deepest drawdown on the test split: a dot per seed, buy and hold as a cross."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    names = list(found)
    chart = make_subplots(cols=len(names), subplot_titles=[DATASETS[name].title for name in names])
    shown: set[str] = set()
    for column, dataset in enumerate(names, start=1):
        for agent, title in AGENTS.items():
            runs = found[dataset].get(agent)
            if not runs:
                continue
            chart.add_trace(
                go.Scatter(
                    x=[-100 * run["metrics"]["max_drawdown"]["value"] for run in runs],
                    y=[100 * run["metrics"]["total_return"]["value"] for run in runs],
                    mode="markers",
                    cliponaxis=False,
                    name=title.replace("… ", "smu0, "),
                    legendgroup=agent,
                    showlegend=agent not in shown,
                    marker={
                        "size": 11,
                        "color": COLOURS.get(agent, OTHER),
                        "symbol": {"buy_and_hold": "x", "sma_cross": "cross"}.get(agent, "circle"),
                    },
                ),
                row=1,
                col=column,
            )
            shown.add(agent)
        chart.add_hline(y=0, line_width=1, line_color="#bbbbbb", row=1, col=column)
        chart.update_xaxes(title_text="deepest drawdown, %", rangemode="tozero", row=1, col=column)
    chart.update_yaxes(title_text="return after costs, %", row=1, col=1)
    chart.update_layout(
        template="plotly_white", width=1300, height=460, margin={"l": 60, "r": 20, "t": 50, "b": 90},
        legend={"orientation": "h", "y": -0.22},
    )  # fmt: skip
    chart.write_html(path, include_plotlyjs=True, config={"displayModeBar": False})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--write", type=Path, default=None, help="page whose measured part is replaced")
    parser.add_argument("--figure", type=Path, default=None, help="HTML file of the figure")
    options = parser.parse_args()
    found = kept(options.runs)
    print(page(found))
    if options.write is not None:
        write(page(found), options.write)
    if options.figure is not None:
        figure(found, options.figure)


if __name__ == "__main__":
    main()
