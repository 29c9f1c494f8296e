"""The pieces that travel: chunks, weights, batches of several rings."""

from typing import Any

import numpy as np
import pytest
import torch

from agent.config import AgentConfig, NetworkConfig
from agent.distributed import Places, ReplayWorker, Searched, SelfPlayWorker
from agent.experience import Memory, RecordList, ring_counts, shares, unpack
from agent.flow import Accepted
from agent.networks.flat import flat_weights, load_flat
from agent.networks.model import StochasticMuZero
from agent.replay import Record

SMALL = {
    "network": {"width": 16, "encoder_width": 16, "latent": 8, "hidden": 16, "codes": 4, "support_atoms": 11},
    "search": {"simulations": 4},
    "self_play": {"num_envs": 4},
    "replay": {"min_steps": 8, "capacity_steps": 160},
    "learner": {"batch_size": 16, "unroll": 2},
}


def _record(rng: np.random.Generator) -> Record:
    return Record(
        observations={"observation": rng.normal(size=(4, 4)).astype(np.float32)},
        action=rng.integers(2, size=4),
        reward=rng.normal(size=4).astype(np.float32),
        terminated=rng.random(4) < 0.1,
        has_transition=rng.random(4) < 0.9,
        action_mask=np.ones((4, 2), bool),
        policy=rng.random((4, 2)).astype(np.float32),
        root_value=rng.normal(size=4).astype(np.float32),
        trust=np.ones(4, np.float32),
    )


def test_a_chunk_holds_its_records_to_the_bit() -> None:
    rng = np.random.default_rng(0)
    records = RecordList()
    for _ in range(5):
        records.add(_record(rng))
    records.cut()
    for before, after in zip(records.records, unpack(records.pack()), strict=True):
        assert np.array_equal(before.observations["observation"], after.observations["observation"])
        for name in ("action", "reward", "terminated", "has_transition", "action_mask", "policy", "root_value"):
            assert np.array_equal(getattr(before, name), getattr(after, name)), name
    assert not records.records[-1].has_transition.any(), "a cut ends the episodes at the newest record"
    assert list(unpack(RecordList().pack())) == []


def test_weights_come_back_from_one_flat_array() -> None:
    def make(seed: int) -> StochasticMuZero:
        torch.manual_seed(seed)
        return StochasticMuZero({"observation": (5,)}, 3, NetworkConfig(width=16, latent=8, hidden=16, codes=4))

    one, other = make(0), make(1)
    flat = flat_weights(one)
    assert flat.ndim == 1
    assert flat.dtype == np.float32
    load_flat(other, flat)
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name
    flat[:] = 0.0
    assert any(bool(value.any()) for value in one.state_dict().values()), "the array is a copy"
    with pytest.raises(ValueError, match="another model"):
        load_flat(other, flat[:-1])


def test_rings_give_their_share_of_a_batch() -> None:
    rng = np.random.default_rng(0)
    counts = np.array([ring_counts([300, 100, 0], 128, rng) for _ in range(400)])
    assert (counts.sum(axis=1) == 128).all()
    assert counts[:, 2].max() == 0
    assert counts[:, 0].mean() == pytest.approx(96, rel=0.04)


@pytest.fixture
def replay(envs: Any) -> ReplayWorker:
    return ReplayWorker(envs, AgentConfig.model_validate(SMALL), rings=2, seed=0, before=Accepted())


@pytest.fixture
def envs() -> Any:
    import gymnasium

    class CartPole:
        def train(self, num_envs: int, seed: int) -> Any:
            return gymnasium.make_vec("CartPole-v1", num_envs=num_envs, vectorization_mode="sync")

    return CartPole()


def _chunk(columns: int, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    records = RecordList()
    for _ in range(columns):
        records.add(_record(rng))
    return records.pack()


def test_a_replay_counts_steps_once_and_a_new_one_goes_on_from_there(replay: ReplayWorker, envs: Any) -> None:
    chunk = _chunk(6)
    steps = int(chunk["has_transition"].sum())
    replay.add(0, 1, chunk, {})
    assert replay.add(1, 1, chunk, {}) == Accepted(records=48, env_steps=2 * steps, held=48)
    after = ReplayWorker(envs, AgentConfig.model_validate(SMALL), rings=2, seed=1, before=replay.accepted())
    assert after.add(0, 1, chunk, {}) == Accepted(records=72, env_steps=3 * steps, held=24)


def test_no_episode_runs_from_a_dead_actor_into_its_successor(replay: ReplayWorker) -> None:
    whole = _chunk(3)
    whole["has_transition"][:] = True
    ring = replay._memory.first[0]
    replay.add(0, 1, whole, {})
    replay.add(0, 1, whole, {})
    assert ring.get_state()["has_transition"].all()
    replay.add(0, 2, whole, {})
    assert not ring.get_state()["has_transition"][:, 5].any()


def test_what_an_actor_left_behind_is_forgotten_when_the_others_have_made_as_much_as_there_is_room_for(
    replay: ReplayWorker,
) -> None:
    """The SMALL replay has room for 160 records: two rings of 20 columns of 4."""
    first, second = replay._memory.first
    assert (first.columns, second.columns) == (20, 20)
    replay.add(0, 1, _chunk(20), {})
    replay.add(1, 1, _chunk(20, seed=1), {})
    assert shares([first, second]) == [80, 80]
    replay.add(1, 1, _chunk(8, seed=2), {})
    assert shares([first, second]) == [48, 80], "the 32 oldest records of all are the first actor's"
    number, batch = replay.sample(0)
    ring, part, _ = replay._sampled[number][0]
    assert ring is not first or part.age.max() < 12
    assert len(batch.row) == 16
    replay.add(1, 1, _chunk(12, seed=3), {})
    assert shares([first, second]) == [0, 80]
    assert {id(ring) for _ in range(20) for ring, *_ in replay._sampled[replay.sample(0)[0]]} == {id(second)}
    assert replay.draw(8).places.ring.tolist() == [1] * 8
    replay.add(0, 2, _chunk(5, seed=4), {})
    assert shares([first, second]) == [20, 80], "who comes back is learnt from at once"


def test_rings_that_fill_at_the_same_pace_forget_what_one_ring_would(replay: ReplayWorker) -> None:
    for step in range(60):
        replay.add(step % 2, 1, _chunk(1, seed=step), {})
    assert shares(replay._memory.first) == [80, 80]


def test_what_was_searched_anew_does_not_overwrite_what_is_newer(replay: ReplayWorker) -> None:
    ring = replay._memory.first[0]
    replay.add(0, 1, _chunk(ring.columns), {})
    drawn = replay.draw(8)
    count = len(drawn.places.row)
    replay.add(int(drawn.places.ring[0]), 1, _chunk(ring.columns, seed=1), {})
    before = {name: array.copy() for name, array in ring.get_state().items()}
    marked = np.full(count, 99.0, np.float32)
    replay.refresh(Searched(drawn.places, np.full((count, 2), 0.5, np.float32), marked))
    assert np.array_equal(before["root_value"], ring.get_state()["root_value"])
    newest = Places(drawn.places.ring, drawn.places.row, np.full(count, ring.added - 1))
    replay.refresh(Searched(newest, np.full((count, 2), 0.5, np.float32), marked))
    assert (ring.get_state()["root_value"] == 99.0).any()


def test_late_priorities_do_not_fall_on_newer_records(replay: ReplayWorker) -> None:
    ring = replay._memory.first[0]
    replay.add(0, 1, _chunk(6), {})
    number, batch = replay.sample(0)
    replay.add(0, 1, _chunk(ring.columns, seed=1), {})
    replay.set_priorities(number, np.full(len(batch.row), 77.0, np.float32))
    assert ring.get_state()["priority"].max() < 77.0
    number, batch = replay.sample(0)
    replay.set_priorities(number, np.full(len(batch.row), 77.0, np.float32))
    assert ring.get_state()["priority"].max() == 77.0


def test_a_replay_comes_back_as_it_was(replay: ReplayWorker, envs: Any) -> None:
    replay.add(0, 1, _chunk(6), {})
    replay.add(1, 1, _chunk(38, seed=1), {})
    assert shares(replay._memory.first) == [8, 80]
    arrays, bookkeeping = replay.get_state()
    other = ReplayWorker(envs, AgentConfig.model_validate(SMALL), rings=2, seed=5, before=Accepted())
    assert other.set_state(arrays, bookkeeping) == replay.accepted()
    for ring in replay._memory.first:
        ring.cut()  # as a restored one is: its actors are new
    first, second = replay.sample(0)[1], other.sample(0)[1]
    assert np.array_equal(first.value, second.value)
    assert np.array_equal(first.column, second.column)
    assert shares(other._memory.first) == [8, 80]
    for one in (replay, other):
        one.add(1, 1, _chunk(1, seed=2), {})
        assert shares(one._memory.first) == [0, 80], "less than a transition is nothing"


def test_an_actor_gathers_first_and_second_lives_in_their_proportion() -> None:
    from market_env.analytic_env import make_vector_env

    class Regime:
        def train(self, num_envs: int, seed: int) -> Any:
            return make_vector_env("Regime", num_envs, seed=seed, drift=0.3, switch=0.02, cost=0.5)

        def validation(self, num_envs: int, seed: int) -> Any:
            return self.train(num_envs, seed)

    raw = {**SMALL, "replay": {"counterfactual_ratio": 0.5, "counterfactual_length": 4, "capacity_steps": 400}}
    config = AgentConfig.model_validate(raw)
    worker = SelfPlayWorker(Regime(), config, seed=0)
    weights = flat_weights(worker._model)
    first, second, reply = worker.gather(weights, 16, 100)
    lives = worker._gatherer.second_lives
    assert lives is not None
    assert lives.actor.env_steps == 50 + reply.second_steps, "their temperature follows the run, not this actor"
    assert first["reward"].shape == (16, 4)
    assert second["reward"].shape == (8, 4)
    assert reply.acted == first["has_transition"].sum() + reply.second_steps
    replay = ReplayWorker(Regime(), config, rings=1, seed=0, before=Accepted())
    accepted = replay.add(0, 1, first, second)
    assert accepted.records == 64, "second lives are no steps of the run"
    memory: Memory = replay._memory
    assert memory.second[0].steps == 32
    drawn = replay.draw(12)
    searched = worker.search(weights, drawn)
    assert searched.policy.sum(axis=1) == pytest.approx(1.0, abs=1e-5)
    replay.refresh(searched)
    assert len(replay.sample(0)[1].row) == config.learner.batch_size
