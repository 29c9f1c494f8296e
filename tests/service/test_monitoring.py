"""Dashboards and alerts ask only for what the service exports, and the operator's guide explains every alert."""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from market_env.guards import GuardConfig, Mode

ROOT = Path(__file__).resolve().parents[2]
DASHBOARDS = sorted((ROOT / "deploy/monitoring/grafana/dashboards").glob("*.json"))
ALERTS = yaml.safe_load((ROOT / "deploy/monitoring/alerts.yml").read_text())
RULES = [rule for group in ALERTS["groups"] for rule in group["rules"]]
METRIC = re.compile(r"\b(?:smu0_[a-z0-9_]+|up)\b(?=[{\[)\s/]|$)")
GUIDE = (ROOT / "docs/operations.md").read_text()


def expressions() -> list[tuple[str, str]]:
    """(where, PromQL) of everything that is asked of Prometheus."""
    found = [(rule["alert"], rule["expr"]) for rule in RULES]
    for path in DASHBOARDS:
        for panel in json.loads(path.read_text())["panels"]:
            found += [(f"{path.name}: {panel['title']}", target["expr"]) for target in panel["targets"]]
    return found


@pytest.fixture
def exported(client: httpx.Client, paper_run: Any) -> str:
    """The exposition of a service with an account that has traded."""
    paper_run.advance(10)
    client.get("/v1/model")
    return client.get("/metrics").text


def test_every_metric_that_is_asked_for_is_exported(exported: str) -> None:
    names = {line.split("{")[0].split(" ")[0] for line in exported.splitlines() if not line.startswith("#")} | {"up"}
    for where, expression in expressions():
        asked = set(METRIC.findall(expression))
        assert asked, f"{where} asks for nothing this test understands: {expression}"
        assert asked <= names, f"{where}: {sorted(asked - names)}"


def test_labels_that_are_asked_for_are_exported(exported: str) -> None:
    for where, expression in expressions():
        for name, matchers in re.findall(r"(smu0_[a-z0-9_]+)\{([^}]+)\}", expression):
            line = next(line for line in exported.splitlines() if line.startswith(f"{name}{{"))
            for label in re.findall(r"([a-z_]+)\s*=", matchers):
                assert f'{label}="' in line, f"{where}: {name} has no label {label}"


def test_modes_that_are_asked_for_are_modes_of_the_guards(exported: str) -> None:
    known = set(re.findall(r'smu0_paper_mode\{.*?mode="([A-Z]+)"', exported))
    asked = {mode for _, expression in expressions() for mode in re.findall(r'mode="([A-Z]+)"', expression)}
    assert asked
    assert asked <= known


def test_the_dashboard_shows_how_things_stand_before_anything_else() -> None:
    [path] = DASHBOARDS
    top = [panel["title"] for panel in json.loads(path.read_text())["panels"] if panel["gridPos"]["y"] == 0]
    assert {"Mode", "Paper process", "Exchange", "Ledger", "API"} == set(top)


@pytest.mark.parametrize("alert", [rule["alert"] for rule in RULES])
def test_every_alert_says_what_is_the_matter_and_the_guide_what_to_do(alert: str) -> None:
    rule = next(rule for rule in RULES if rule["alert"] == alert)
    assert rule["annotations"]["summary"]
    assert rule["labels"]["severity"] in ("warning", "critical")
    assert f"| `{alert}` |" in GUIDE


def kinds_of_events(code: str) -> Iterator[str]:
    """The literal kinds in calls of `append_event(kind, ...)` and of the trader's `_tell(write, kind, ...)`."""
    place = {"append_event": 0, "_tell": 1}
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in place:
            kind = node.args[place[node.func.attr]]
            for option in [kind.body, kind.orelse] if isinstance(kind, ast.IfExp) else [kind]:
                if isinstance(option, ast.Constant):
                    yield str(option.value)


def test_every_event_of_the_trader_is_in_the_guide() -> None:
    files = [*(ROOT / "service/paper").glob("*.py"), *(ROOT / "service/ledger").glob("*.py")]
    kinds = {kind for path in files for kind in kinds_of_events(path.read_text())}
    assert {"guards", "exchange_unreachable", "bar_late", "archived"} <= kinds
    events = GUIDE[GUIDE.index("### Events") :]
    assert {kind for kind in kinds if f"`{kind}`" not in events} == set()


def test_every_cause_and_mode_of_the_guards_is_in_the_guide() -> None:
    modes = GUIDE[GUIDE.index("### Modes") : GUIDE.index("### Events")]
    for mode in Mode:
        assert f"| {mode.value} |" in modes
    config = GuardConfig()
    assert config.max_drawdown is not None
    assert config.max_daily_loss is not None
    for words in (
        f"{config.max_drawdown:.0%} below the peak",
        f"loss of {config.max_daily_loss:.0%} in the day",
        f"{config.max_trades_per_day} orders",
        "older than two bars" if config.max_data_age_bars == 2 else "?",
        "ten failures in a row" if config.max_exchange_errors == 10 else "?",
        f"over {config.max_clock_skew_seconds:g} s off",
        "HALT file",
        "not a number",
    ):
        assert words in modes
