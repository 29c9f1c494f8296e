"""The mock exchange's clock survives the mock exchange."""

from pathlib import Path

import pytest

from data.mock_exchange import kept_clock, kept_time, replay_clock


def test_a_killed_exchange_never_shows_an_earlier_time(tmp_path: Path) -> None:
    file = tmp_path / "clock"
    wall = [0.0]
    shown = []
    for life in range(5):
        start = kept_time(file) or 1_000_000
        clock = kept_clock(file, replay_clock(start, 600.0, lambda: wall[0]), ahead_ms=600_000)
        for step in range(20):
            wall[0] += 0.037 * (life + step)
            shown.append(clock())
    assert shown == sorted(shown)


def test_a_restart_skips_no_more_than_the_time_kept_ahead(tmp_path: Path) -> None:
    now = [5_000]
    clock = kept_clock(tmp_path / "clock", lambda: now[0], ahead_ms=300)
    for now[0] in range(5_000, 6_000, 7):
        at = clock()
        assert at <= (kept_time(tmp_path / "clock") or 0) <= at + 300


def test_the_file_is_written_no_more_often_than_it_must(tmp_path: Path) -> None:
    now = [0]
    clock = kept_clock(tmp_path / "clock", lambda: now[0], ahead_ms=1_000)
    written = set()
    for now[0] in range(0, 10_000, 10):
        clock()
        written.add(kept_time(tmp_path / "clock"))
    assert len(written) == 10


def test_a_damaged_file_is_an_error_and_no_new_beginning(tmp_path: Path) -> None:
    (tmp_path / "clock").write_text("yesterday")
    with pytest.raises(ValueError, match="epoch milliseconds"):
        kept_time(tmp_path / "clock")
    assert kept_time(tmp_path / "absent") is None
