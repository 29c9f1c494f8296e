"""The image's build asks every bundled model of a market, and passes over the others."""

import importlib.util
from pathlib import Path

import pytest

from configs.checkpoints import market_models

ROOT = Path(__file__).parents[2]


def test_the_build_asks_the_bundled_models_of_markets(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location("compile_kernels", ROOT / "deploy" / "compile_kernels.py")
    assert spec is not None
    assert spec.loader is not None
    kernels = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(kernels)
    asked, commands = [], []
    ask = kernels.ask
    monkeypatch.setattr(kernels, "ask", lambda model: (asked.append(model), ask(model)))
    monkeypatch.setattr(kernels, "run", lambda command, place: commands.append(command[:2]))
    monkeypatch.setattr("sys.argv", ["compile_kernels.py", str(ROOT / "models")])
    kernels.main()
    names = [path.name for path in market_models(ROOT / "models")]
    assert "btc_1h" in names
    assert "cartpole" not in names
    assert len(asked) == len(names)
    assert commands == [["data", "sample"], ["agent", "train"], ["backtest", "run"]]
