"""The prediction of docs/scaling.md, on costs that can be worked out by hand."""

from dataclasses import replace

import pytest

from benchmarks.scaling import Costs, Plan, limits, predict

# An actor makes 1,000 steps/s, the learner 50 updates/s, which at 0.1 updates a step serve 500 steps/s.
COSTS = Costs(
    act=1e-3, load=0.0, add=1e-6, sample=1e-3, update=0.02, call=1e-4, way=2e-3,
    step_bytes=100.0, weight_bytes=1e6, batch_bytes=1e4,
)  # fmt: skip
PLAN = Plan(actors=1, chunk_steps=100, updates_per_step=0.1)


def test_each_bound_is_the_one_worked_out_by_hand() -> None:
    found = limits(COSTS, PLAN)
    assert found["actors"] == pytest.approx(1_000)
    assert found["learner"] == pytest.approx(500)
    assert found["replay"] == pytest.approx(1 / (1e-6 + 1e-4))
    assert found["driver"] == pytest.approx(100 / 2e-4)
    assert found["network"] == pytest.approx(1.25e9 / (100 + 1_000 + 10_000))


def test_a_faster_learner_moves_the_bottleneck() -> None:
    assert predict(COSTS, PLAN) == (pytest.approx(500), "learner")
    assert predict(COSTS, replace(PLAN, learner_speed=10.0)) == (pytest.approx(1_000), "actors")
    rate, bottleneck = predict(COSTS, replace(PLAN, learner_speed=10.0, actors=64))
    assert bottleneck == "learner"
    assert rate == pytest.approx(1 / (0.1 * 0.02 / 10))


def test_taking_up_weights_costs_more_in_shorter_chunks() -> None:
    slow = replace(COSTS, load=0.1)
    assert limits(slow, PLAN)["actors"] == pytest.approx(500)
    assert limits(slow, replace(PLAN, chunk_steps=1_000))["actors"] == pytest.approx(1 / 1.1e-3)
