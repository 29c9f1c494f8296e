"""Table and figure of kept learning runs.

    python -m benchmarks.learning_page RUNS [--figure learning.html] [--settings regime_base momentum]

RUNS is the --out folder of benchmarks/learning.py. Prints a Markdown table of what is there, one row per setting and
agent, and draws the curves: score against environment steps and against seconds, one line per run.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from benchmarks.learning import SETTINGS, metrics_of

Json = dict[str, Any]
COLOURS = {"smu0": "#1f5fbf", "ppo": "#c2571a", "dqn": "#4f8a3d"}
OTHER = "#777777"


def kept(folder: Path) -> dict[tuple[str, str], list[Json]]:
    """Runs by setting and agent. Raises FileNotFoundError when there are none."""
    runs: dict[tuple[str, str], list[Json]] = defaultdict(list)
    for file in sorted(folder.glob("*.json")):
        run = json.loads(file.read_text())
        runs[run["job"]["setting"], run["job"]["agent"]].append(run)
    if not runs:
        raise FileNotFoundError(f"{folder}: expected results of benchmarks.learning --out, found none")
    order = list(SETTINGS)
    return dict(sorted(runs.items(), key=lambda item: (order.index(item[0][0]), item[0][1] != "smu0", item[0][1])))


def table(runs: dict[tuple[str, str], list[Json]]) -> str:
    """One row per setting and agent: mean over seeds with its standard error, and the range. codes: perplexity of the
    chance codes in use; outcomes: of those expected after one action."""
    lines = [
        "| setting | agent | seeds | score | by the prior | env steps to 0.95 | seconds to 0.95 | seconds | codes "
        "| outcomes |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for (setting, agent), found in runs.items():
        metrics = metrics_of(setting, agent, found)
        prefix = "" if agent == "smu0" else f"{agent}_"
        score = metrics.get(f"{prefix}score_{setting}") or metrics[f"{prefix}reward_{setting}"]
        error = f" ± {score['standard_error']:.3f}" if score.get("standard_error") is not None else ""
        steps, seconds = (metrics[f"{prefix}{what}_to_0.95_{setting}"] for what in ("env_steps", "seconds"))
        prior, codes, outcomes = (
            metrics.get(f"{prefix}{what}_{setting}") for what in ("prior_score", "codes", "outcomes")
        )
        spent = [run["seconds"] for run in found]
        cells = [
            setting,
            agent,
            str(len(found)),
            f"{score['value']:.3f}{error} ({score['low']:.3f} to {score['high']:.3f})",
            "" if prior is None else f"{prior['value']:.3f}",
            _reached(steps, len(found)),
            _reached(seconds, len(found)),
            f"{min(spent):.0f} to {max(spent):.0f}",
            "" if codes is None else f"{codes['value']:.1f}",
            "" if outcomes is None else f"{outcomes['value']:.1f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _reached(metric: Json, runs: int) -> str:
    if metric["value"] is None:
        return "never"
    return f"{metric['value']:,.0f}" + (f" ({metric['runs']} of {runs})" if metric["runs"] < runs else "")


def figure(runs: dict[tuple[str, str], list[Json]], settings: list[str]) -> Any:
    """Score against environment steps (left) and seconds (right), one row per setting."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    titles = [f"{setting}: score by {what}" for setting in settings for what in ("environment steps", "seconds")]
    page = make_subplots(
        rows=len(settings), cols=2, subplot_titles=titles, shared_yaxes=True, vertical_spacing=0.3 / len(settings)
    )
    named = set()
    for (setting, agent), found in runs.items():
        if setting not in settings:
            continue
        row = settings.index(setting) + 1
        for run in found:
            for column, what in ((1, "env_steps"), (2, "seconds")):
                line = go.Scatter(
                    x=[point[what] for point in run["curve"]],
                    y=[point["score"] for point in run["curve"]],
                    name=agent,
                    legendgroup=agent,
                    showlegend=agent not in named,
                    line={"color": COLOURS.get(agent, OTHER), "width": 1.6},
                    mode="lines",
                )
                named.add(agent)
                page.add_trace(line, row=row, col=column)
    for axis in page.select_yaxes():
        axis.update(range=[-0.2, 1.1], zeroline=False, gridcolor="#e5e5e5")
    page.update_xaxes(gridcolor="#e5e5e5", rangemode="tozero")
    page.update_layout(
        template="plotly_white", height=210 * len(settings) + 90, width=1000, font={"family": "sans-serif", "size": 12},
        legend={"orientation": "h", "yanchor": "top", "y": 1.0, "yref": "container"},
        margin={"l": 50, "r": 20, "t": 80, "b": 40},
    )  # fmt: skip
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--figure", type=Path, default=None, help="write the curves to this HTML file")
    parser.add_argument("--settings", nargs="+", default=None, help="what the figure shows; default: all markets")
    options = parser.parse_args()
    runs = kept(options.runs)
    print(table(runs))
    if options.figure is not None:
        shown = options.settings or list(dict.fromkeys(setting for setting, _ in runs if SETTINGS[setting].is_market))
        figure(runs, shown).write_html(options.figure, include_plotlyjs=True, config={"displayModeBar": False})
        print(f"\n{options.figure}")


if __name__ == "__main__":
    main()
