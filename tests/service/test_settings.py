"""Places and secrets come from the environment, and from a file the environment names."""

from pathlib import Path

import pytest

from service.settings import read_settings


@pytest.fixture
def settings_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "settings"
    file.write_text("SMU0_STATE=/somewhere/demo\nSMU0_EXCHANGE_URL=http://mock-exchange:8091\nSOMETHING_ELSE=1\n")
    for name in ("STATE", "EXCHANGE_URL", "RUNS"):
        monkeypatch.delenv(f"SMU0_{name}", raising=False)
    monkeypatch.setenv("SMU0_SETTINGS", str(file))
    return file


def test_a_settings_file_supplies_what_the_environment_leaves_out(settings_file: Path) -> None:
    settings = read_settings()
    assert settings.state == Path("/somewhere/demo")
    assert settings.exchange_url == "http://mock-exchange:8091"
    assert settings.ledger_url == "sqlite:////somewhere/demo/ledger.sqlite3"
    assert settings.runs == Path("var/runs")


def test_the_environment_goes_before_the_settings_file(settings_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMU0_STATE", "/mine")
    assert read_settings().state == Path("/mine")


def test_an_empty_variable_leaves_it_to_the_settings_file(settings_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMU0_STATE", "")
    assert read_settings().state == Path("/somewhere/demo")


def test_a_settings_file_that_is_not_there_is_an_error(settings_file: Path) -> None:
    settings_file.unlink()
    with pytest.raises(ValueError, match="SMU0_SETTINGS: expected a file"):
        read_settings()


def test_a_secret_in_the_settings_file_is_not_told_by_a_complaint_about_it(settings_file: Path) -> None:
    settings_file.write_text("SMU0_API_KEY=tooshort\n")
    with pytest.raises(ValueError, match="SMU0_API_KEY") as caught:
        read_settings()
    assert "tooshort" not in str(caught.value)
