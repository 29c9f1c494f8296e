"""Every game's configuration trains, and what is reported is there."""

from typing import Any

import pytest

from benchmarks.games.__main__ import _overrides
from benchmarks.games.learning import SETTINGS, learn

TINY: dict[str, Any] = {
    "network": {"width": 16, "encoder_width": 16, "latent": 16, "hidden": 16},
    "search": {"simulations": 4},
    "self_play": {"num_envs": 8},
    "replay": {"min_steps": 40},
    "learner": {"batch_size": 8},
    "training": {"env_steps": 200, "evaluation_episodes": 2},
}


@pytest.mark.parametrize("game", sorted(SETTINGS))
def test_a_game_is_learnt_and_scored(game: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SETTINGS, game, SETTINGS[game].__class__(**{**vars(SETTINGS[game]), "final_games": 4}))
    result = learn(game, TINY, seed=0, minutes=None)
    assert result["env_steps"] >= 200
    assert result["updates"] > 0
    assert [point["score"] for point in result["curve"]]
    assert result["best"] >= result["score"]
    if game == "tictactoe":
        assert sum(result["games"]["first"].values()) > 0
        assert set(result["games"]) == {"first", "second", "first against anybody", "second against anybody"}


def test_overrides_are_read_as_yaml() -> None:
    assert _overrides(["network.codes=1", "discount=0.9"]) == {"network": {"codes": 1}, "discount": 0.9}
