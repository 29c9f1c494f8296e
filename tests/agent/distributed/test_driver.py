"""The driver's bookkeeping under losses at exact moments, on a Ray of one process."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from agent.checkpoint import CheckpointError, load_policy, read_metadata
from agent.distributed import DistributedTrainer, RunStopped

Make = Callable[..., DistributedTrainer]


class Killer:
    """Kills the actor of a kind that is about to make its n-th call of a method."""

    def __init__(self, kind: str, method: str, *numbers: int) -> None:
        self.kind, self.method, self.numbers, self.calls, self.killed = kind, method, numbers, 0, 0

    def __call__(self, actor: Any, task: Any) -> None:
        if (actor.kind, task.method) != (self.kind, self.method) or actor.dead:
            return
        self.calls += 1
        if self.calls in self.numbers:
            actor.dead = True
            self.killed += 1


def _curve(trainer: DistributedTrainer) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (trainer.settings.directory / "metrics.jsonl").read_text().splitlines()]


def _accepted(world: Any) -> tuple[int, int]:
    """Steps that all replays of a run have taken in themselves, newest counters; and those a replay holds."""
    replays = [actor for actor in world.actors if actor.kind == "ReplayWorker" and actor._made is not None]
    newest = replays[-1]._made.accepted()
    return newest.env_steps, newest.held


def test_a_run_spends_its_budget_and_updates_as_its_replay_ratio_says(trainer: Make) -> None:
    run = trainer()
    run.run()
    assert run.env_steps >= 400
    paid = (run.accepted.records - 40) * 0.1
    assert paid - 1 < run.updates <= paid
    assert [row["updates"] for row in _curve(run)] == sorted(row["updates"] for row in _curve(run))
    assert load_policy(run.checkpoints / "best").metadata.score == run.best_score


def test_counters_are_what_the_replay_accepted(trainer: Make, world: Any) -> None:
    run = trainer()
    run.run()
    assert _accepted(world)[0] == run.env_steps
    assert run.accepted.records > run.env_steps, "last observations of episodes are records but no steps"


def test_actors_take_turns_where_the_learner_is_the_slower(trainer: Make, world: Any) -> None:
    waiting: list[Any] = []  # updates are always the last thing to be done

    def last(refs: list[Any], *, num_returns: int, timeout: float) -> tuple[list[Any], list[Any]]:
        acting = [ref for ref in refs if ref.task.method != "learn"]
        waiting.append(len(refs) - len(acting))
        chosen = (acting or refs)[0]
        chosen.task.run()
        return [chosen], [ref for ref in refs if ref is not chosen]

    run = trainer(actors=5)
    run._ray.wait = last
    run.run()
    assert sum(waiting) > 10, "the learner was behind"
    assert min(run.steps_by_seat) > 0
    assert max(run.steps_by_seat) - min(run.steps_by_seat) <= 2 * run.chunk * run.config.self_play.num_envs


@pytest.mark.parametrize("method", ["gather", "ready", "search"])
def test_a_self_play_actor_that_dies_is_replaced_and_its_lost_steps_do_not_count(
    trainer: Make, world: Any, method: str
) -> None:
    world.before = killer = Killer("SelfPlayWorker", method, 2, 5)
    run = trainer()
    run.run()
    assert killer.killed >= 1
    assert run.deaths["self-play"] == killer.killed
    assert _accepted(world)[0] == run.env_steps >= 400


def test_a_replay_that_dies_is_replaced_and_counters_go_on(trainer: Make, world: Any) -> None:
    world.before = killer = Killer("ReplayWorker", "add", 12)
    run = trainer()
    run.run()
    assert killer.killed == run.deaths["replay"] == 1
    assert _accepted(world)[0] == run.env_steps >= 400
    assert run.updates < (run.accepted.records - 40) * 0.1


def test_a_replay_that_dies_under_the_learner_costs_no_update(trainer: Make, world: Any) -> None:
    world.before = killer = Killer("ReplayWorker", "sample", 15)
    run = trainer()
    run.run()
    learner = next(actor._made for actor in world.actors if actor.kind == "LearnerWorker")
    assert killer.killed == run.deaths["replay"] == 1
    assert learner.fitter.learner.updates == run.updates > 14


def test_an_evaluator_that_dies_is_replaced_and_looks_again(trainer: Make, world: Any) -> None:
    world.before = killer = Killer("EvaluatorWorker", "evaluate", 2)
    run = trainer()
    run.run()
    assert killer.killed == run.deaths["evaluator"] == 1
    assert len(_curve(run)) >= 2


def test_a_run_without_its_learner_stops_and_says_how_to_go_on(trainer: Make, world: Any) -> None:
    world.before = Killer("LearnerWorker", "learn", 9)
    run = trainer()
    with pytest.raises(RunStopped, match="--resume"):
        run.run()
    world.before = lambda actor, task: None
    stopped = read_metadata(run.checkpoints / "latest").counters
    resumed = trainer()
    resumed.resume()
    assert resumed.updates == stopped.updates > 0
    resumed.run()
    assert resumed.env_steps >= 400
    assert resumed.updates > stopped.updates
    updates = [row["updates"] for row in _curve(resumed)]
    assert updates == sorted(set(updates)), "no point of the curve is drawn twice"


def test_actors_that_keep_dying_stop_the_run(trainer: Make, world: Any) -> None:
    world.before = Killer("SelfPlayWorker", "gather", *range(1, 100))
    with pytest.raises(RunStopped, match="none delivered"):
        trainer().run()


def test_an_error_in_an_actor_is_no_loss(trainer: Make, world: Any) -> None:
    class Broken:
        def __getattr__(self, name: str) -> Any:
            raise ZeroDivisionError

    with pytest.raises(Exception, match="ZeroDivisionError"):
        trainer(envs=Broken()).run()


def test_the_number_of_actors_is_part_of_a_run(trainer: Make) -> None:
    trainer().run()
    with pytest.raises(CheckpointError, match="--actors 2"):
        trainer(3).resume()
