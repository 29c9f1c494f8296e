"""Frames: the right size, new at each step, and showing what happened."""

import numpy as np
import pytest

from market_env.env import MarketEnv
from market_env.render import HEIGHT, WIDTH


@pytest.fixture
def make(random_market, settings):
    config = settings(observation={"window": 4}, episode={"random_start": False, "horizon": None})

    def build(mode, seed=0):
        env = MarketEnv([random_market(0)], config, render_mode=mode)
        env.reset(seed=seed)
        return env

    return build


def test_an_image_is_an_array_of_fixed_size_that_moves_with_the_market(make):
    env = make("rgb_array")
    first = env.render()
    assert (first.shape, first.dtype) == ((HEIGHT, WIDTH, 3), np.uint8)
    assert np.array_equal(env.render(), first)
    env.step(4)
    second = env.render()
    assert not np.array_equal(first, second)
    second[:] = 0
    assert env.render().any()


def test_rendering_does_not_change_the_episode(make):
    silent, drawn = make(None), make("rgb_array")
    for action in (4, 0, 3, 1) * 10:
        expected, found = silent.step(action), drawn.step(action)
        drawn.render()
        assert expected[1] == found[1]
        assert expected[0]["account"].tobytes() == found[0]["account"].tobytes()


def test_every_bar_of_an_episode_can_be_drawn(make):
    env = make("rgb_array")
    done = False
    while not done:
        *_, terminated, truncated, _ = env.step(int(np.random.default_rng(len(env._renderer._steps)).integers(5)))
        done = terminated or truncated
        if len(env._renderer._steps) % 40 == 0 or done:
            assert env.render().shape == (HEIGHT, WIDTH, 3)


def test_text_tells_price_equity_position_and_fills(make):
    env = make("ansi")
    info = env.step(4)[4]
    text = env.render()
    assert "TEST" in text
    assert f"{info['equity']:,.2f}" in text
    assert f"{info['exposure']:+.2f}" in text
    assert f"fills {int(info['qty_filled'] != 0)}" in text


def test_human_mode_prints_as_it_plays(make, capsys):
    env = make("human")
    env.step(4)
    assert env.render() is None
    assert capsys.readouterr().out.count("equity") == 2


def test_render_without_a_mode_says_what_to_do(make):
    with pytest.warns(UserWarning, match="needs a render mode"):
        assert make(None).render() is None
