"""The house stands as ARCHITECTURE.md draws it: packages, layers, and one place for fill arithmetic."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
TOP = ("data", "market_env", "agent", "backtest", "service", "configs")


def _imports(path: Path) -> set[str]:
    """Every module a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def _importers(target: str) -> set[str]:
    return {
        str(path.relative_to(ROOT))
        for package in TOP
        for path in _modules(package)
        if any(name == target or name.startswith(target + ".") for name in _imports(path))
    }


def test_every_package_is_listed_for_the_build() -> None:
    listed = set(PYPROJECT["tool"]["setuptools"]["packages"])
    present = {".".join(path.parent.relative_to(ROOT).parts) for package in TOP for path in _modules(package)}
    assert listed == present


def test_tests_are_no_packages() -> None:
    assert list((ROOT / "tests").rglob("__init__.py")) == []


def test_state_is_ignored_and_code_is_not() -> None:
    lines = (ROOT / ".gitignore").read_text().splitlines()
    assert "/var/" in lines
    assert not any(line.strip("/") in TOP for line in lines)


def test_torch_stays_out_of_data_and_market() -> None:
    assert not any(name.startswith(("data/", "market_env/")) for name in _importers("torch"))


def test_only_the_exchange_module_imports_ccxt() -> None:
    assert _importers("ccxt") <= {"data/exchange.py"}


def test_nothing_is_ever_pickled() -> None:
    assert _importers("pickle") == set()
    for package in TOP:
        for path in _modules(package):
            assert "torch.load(" not in path.read_text(), path
            assert "allow_pickle=True" not in path.read_text(), path


@pytest.mark.parametrize(
    ("driver", "through"),
    [
        ("market_env/session.py", "market_env.kernel"),
        ("market_env/rows.py", "market_env.kernel"),
        ("market_env/env.py", "market_env.rows"),
        ("market_env/vector.py", "market_env.rows"),
    ],
)
def test_every_driver_calls_the_one_kernel(driver: str, through: str) -> None:
    assert driver in _importers(through)


@pytest.mark.parametrize(
    ("user", "road"),
    [("backtest", {"market_env.session"}), ("service", {"market_env.session", "market_env.observation"})],
)
def test_backtest_and_service_reach_accounts_through_market_env(user: str, road: set[str]) -> None:
    imported = set().union(*(_imports(path) for path in _modules(user)))
    assert any(name == part or name.startswith(part + ".") for part in road for name in imported)


@pytest.mark.parametrize("package", ["data", "agent", "backtest", "service", "configs"])
def test_no_other_package_defines_fill_arithmetic(package: str) -> None:
    """Names of the kernel's business may be used elsewhere, but functions that compute it stand in market_env."""
    business = ("fill_price", "arrival_price", "liquidat", "impact_cost", "apply_fill", "margin_call", "half_spread")
    for path in _modules(package):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                assert not any(word in node.name for word in business), f"{path}: {node.name}"


@pytest.mark.parametrize("package", TOP)
def test_importing_a_package_is_quick_and_quiet(package: str) -> None:
    """No heavy work, no output, no network at import: a child process with sockets forbidden imports it."""
    code = (
        "import socket, sys\n"
        "def refuse(*a, **k): raise RuntimeError('network at import')\n"
        "socket.socket.connect = refuse\n"
        f"import {package}\n"
        "assert 'ccxt' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert done.stderr == ""
