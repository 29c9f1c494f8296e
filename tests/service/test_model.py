"""A checkpoint becomes a model that sees what training saw, or is refused with a reason."""

import dataclasses
import json
import os
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent.checkpoint import METADATA, WEIGHTS, load_policy
from agent.policy import Decision, decision_from_actions
from configs.checkpoints import CheckpointNotFound, find_checkpoint
from data.bars import Bars
from data.features import ewma_volatility, trailing_median_volume
from market_env.session import BarInput, TradingSession
from service import model as model_module
from service.checkpoints import checkpoint_within
from service.errors import InvalidModelOutput, InvalidRequest
from service.model import Answer, ModelError, Question, ServedModel, golden_bars, load_model
from service.schemas import ActRequest

Json = dict[str, Any]
NOW_MS = int(datetime(2019, 1, 1, 12, tzinfo=UTC).timestamp() * 1000)


def ask_of(served: ServedModel, body: Json) -> tuple[Bars, Question]:
    request = ActRequest.model_validate_json(json.dumps(body))
    bars = served.bars(request, NOW_MS)
    return bars, served.question(request, bars)


# --- the same observation as in training -----------------------------------------------------------------------------


def test_required_bars_fill_the_window_exactly(served: ServedModel) -> None:
    assert served.required_bars == served.window + served.features.warmup - 1


def test_the_window_is_bit_identical_to_the_one_cut_from_the_whole_history(
    served: ServedModel, sample: Bars, body: Json, window_ending_at: Callable[[int], list[list[float]]]
) -> None:
    whole = served.features.compute(sample)
    for t in (served.required_bars - 1, 1500, len(sample) - 1):
        _, question = ask_of(served, {**body, "bars": window_ending_at(t)})
        assert question.window.dtype == np.float32
        assert np.array_equal(question.window, whole[t - served.window + 1 : t + 1])


def test_bars_before_the_window_do_not_matter_and_the_last_does(
    served: ServedModel, sample: Bars, body: Json, window_ending_at: Callable[[int], list[list[float]]]
) -> None:
    rows = window_ending_at(3000)
    _, before = ask_of(served, {**body, "bars": rows})
    rows[-1][4] = rows[-1][2]  # the close moves to the high
    _, after = ask_of(served, {**body, "bars": rows})
    assert np.array_equal(before.window[:-1], after.window[:-1])
    assert not np.array_equal(before.window[-1], after.window[-1])


def test_an_account_told_from_outside_looks_like_the_one_that_lived_it(
    served: ServedModel, sample: Bars, body: Json, window_ending_at: Callable[[int], list[list[float]]]
) -> None:
    """A session trades for a while; described by its ledger, the service must see what the session sees."""
    session = TradingSession(served.experiment.market, model_module.Instrument.for_symbol("SP500"), seed=3)
    sigma, volume = ewma_volatility(sample.close), trailing_median_volume(sample.volume)
    start, peak, last_target, checked = 3000, 10_000.0, 0.0, 0
    for t, target in enumerate([0.0, 1.0, 1.0, -0.5, -0.5, -0.5, 0.5, 0.0, 0.0, 1.0, 1.0, -1.0, -1.0], start=start):
        record = session.on_bar(BarInput.from_bars(sample, t))
        peak = max(peak, record.equity)
        state = session.get_state()["account"]
        described: Json = {
            "equity": record.equity, "initial_equity": 10_000.0, "peak_equity": peak,
            "last_target": last_target, "last_fill_fraction": state["fill_fraction"],
        }  # fmt: skip
        if session.units:
            described |= {
                "entry_price": state["entry_price"], "entry_volatility": state["entry_sigma"],
                "bars_held": int(state["bars_held"]),
            }  # fmt: skip
            checked += 1
        if abs(session.exposure) <= 1.0:
            asked = {**body, "bars": window_ending_at(t), "position": session.exposure, "account": described}
            _, question = ask_of(served, asked)
            np.testing.assert_allclose(question.account, session.account_observation(), rtol=2e-7, atol=1e-9)
        session.submit(target, sigma=float(sigma[t]), median_volume=float(volume[t]))
        last_target = target
    assert checked > 5


def test_an_account_that_is_not_told_is_one_that_opened_the_position_at_the_last_close(
    served: ServedModel, body: Json
) -> None:
    _, question = ask_of(served, {**body, "position": 0.5})
    exposure, target, fill, unrealised, growth, drawdown, held, distance = question.account
    assert (exposure, target, fill) == (0.5, 0.5, 1.0)
    assert (unrealised, growth, drawdown, held) == (0.0, 0.0, 0.0, 0.0)
    assert distance == 1.0  # half invested, no debt: no price liquidates it
    _, flat = ask_of(served, {**body, "position": 0.0})
    assert flat.account.tolist() == [0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0]


def test_only_ratios_of_the_account_count(served: ServedModel, body: Json) -> None:
    account = {"equity": 90.0, "initial_equity": 100.0, "peak_equity": 120.0, "bars_held": 3, "last_target": 1.0}
    _, small = ask_of(served, {**body, "account": account})
    scaled = {**account, "equity": 90e6, "initial_equity": 100e6, "peak_equity": 120e6}
    _, large = ask_of(served, {**body, "account": scaled})
    np.testing.assert_allclose(small.account, large.account, rtol=1e-6)
    assert small.account[4] == pytest.approx(np.log(0.9), rel=1e-6)
    assert small.account[5] == pytest.approx(0.25)


def test_positions_are_fractions_of_the_largest_leverage(
    make_checkpoint: Callable[..., Path], tmp_path: Path, body: Json
) -> None:
    market = {"observation": {"window": 8}, "actions": {"levels": [-1.0, 0.0, 1.0], "max_leverage": 3.0}}
    served = load_model(make_checkpoint(tmp_path, market=market))
    assert served.target_positions == [-1.0, 0.0, 1.0]
    _, question = ask_of(served, {**body, "position": 0.5})
    assert question.account[0] == 1.5


def test_a_spot_model_refuses_a_short_position_and_never_goes_short(
    make_checkpoint: Callable[..., Path], tmp_path: Path, body: Json
) -> None:
    served = load_model(make_checkpoint(tmp_path, market={"observation": {"window": 8}, "actions": {"spot": True}}))
    with pytest.raises(InvalidRequest, match="without short selling"):
        ask_of(served, {**body, "position": -0.5})
    _, question = ask_of(served, {**body, "position": 0.5})
    [answer] = served.decide([question])
    assert isinstance(answer, Answer)
    assert answer.policy[:2] == [0.0, 0.0]
    assert served.target_positions[answer.action] >= 0.0


# --- decisions -------------------------------------------------------------------------------------------------------


def test_a_decision_is_the_policys_own_in_any_company(
    runs: Path, served: ServedModel, body: Json, window_ending_at: Callable[[int], list[list[float]]]
) -> None:
    questions = [ask_of(served, {**body, "bars": window_ending_at(t)})[1] for t in range(400, 420)]
    mixed = [Question(q.window, q.account, (None, 0, 4)[i % 3]) for i, q in enumerate(questions)]
    policy = load_policy(runs / "tiny" / "checkpoints" / "best")
    for question, answer in zip(mixed, served.decide(mixed), strict=True):
        alone = policy.act(
            {"window": question.window[None], "account": question.account[None]}, simulations=question.simulations
        )
        assert isinstance(answer, Answer)
        assert answer.action == alone.action[0]
        assert answer.value == alone.value[0]
        assert answer.policy == alone.policy[0].tolist()
        assert answer.simulations == alone.simulations
        assert np.array_equal(answer.chance, alone.chance_probabilities[0, answer.action])


class Poisoned:
    """Fails on one window, and says NaN on another."""

    num_actions = 5

    def act(self, observations: Json, *, action_mask: Any = None, simulations: int | None = None) -> Decision:
        first = observations["window"][:, 0, 0]
        if (first == 1.0).any():
            raise ValueError("bad row")
        decision = decision_from_actions(np.zeros(len(first), dtype=np.int64), 5)
        decision.value[first == 2.0] = np.nan
        return decision


def test_a_question_that_fails_or_gets_nan_spoils_no_other(served: ServedModel) -> None:
    def question(mark: float) -> Question:
        return Question(np.full((8, 8), mark, np.float32), np.zeros(8, np.float32), None)

    poisoned = dataclasses.replace(served, policy=Poisoned())
    answers = poisoned.decide([question(0.0), question(1.0), question(2.0), question(0.0)])
    assert isinstance(answers[0], Answer)
    assert str(answers[1]) == "bad row"
    assert isinstance(answers[2], InvalidModelOutput)
    assert isinstance(answers[3], Answer)


# --- what is refused -------------------------------------------------------------------------------------------------


def test_golden_bars_are_valid_and_always_the_same(served: ServedModel) -> None:
    bars = golden_bars(served.timeframe, 300)
    assert bars.fingerprint == golden_bars(served.timeframe, 300).fingerprint
    table = served.features.compute(bars)[served.features.warmup - 1 :]
    assert (table.std(axis=0)[:6] > 0.0).all()  # they exercise every feature that is not about the week


def test_other_features_than_this_version_computes_are_refused_with_both_fingerprints(
    own_runs: Path, edit_metadata: Callable[..., None], served: ServedModel
) -> None:
    best = own_runs / "tiny" / "checkpoints" / "best"
    edit_metadata(best, feature_fingerprint="4f2a4f2a4f2a4f2a")
    with pytest.raises(ModelError, match=f"expects features 4f2a.*computes {served.features.fingerprint}.*retrain"):
        load_model(best)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"experiment": {}}, "no experiment"),
        ({"experiment": {"name": "x"}}, "data: Field required"),
        ({"schema_version": 99}, "schema_version"),
    ],
)
def test_a_checkpoint_that_does_not_describe_a_market_model_is_refused(
    own_runs: Path, edit_metadata: Callable[..., None], change: Json, complaint: str
) -> None:
    best = own_runs / "tiny" / "checkpoints" / "best"
    edit_metadata(best, **change)
    with pytest.raises(ModelError, match=complaint):
        load_model(best)


def test_weights_of_another_experiment_are_refused(own_runs: Path, edit_metadata: Callable[..., None]) -> None:
    best = own_runs / "tiny" / "checkpoints" / "best"
    experiment = load_policy(best).metadata.experiment
    experiment["market"]["observation"]["window"] = 16
    edit_metadata(best, experiment=experiment)
    with pytest.raises(ModelError, match="not a checkpoint of that experiment"):
        load_model(best)


@pytest.mark.parametrize("damage", ["truncated", "missing", "no json"])
def test_a_damaged_checkpoint_is_refused(own_runs: Path, damage: str) -> None:
    best = own_runs / "tiny" / "checkpoints" / "best"
    if damage == "truncated":
        (best / WEIGHTS).write_bytes((best / WEIGHTS).read_bytes()[:-10])
    elif damage == "missing":
        (best / WEIGHTS).unlink()
    else:
        (best / METADATA).write_text("{")
    with pytest.raises(ModelError, match=str(WEIGHTS) if damage != "no json" else "JSON"):
        load_model(best)


@pytest.mark.parametrize(
    ("actions", "values", "complaint"),
    [
        ([0, 0], [np.nan, np.nan], "NaN or infinity"),
        ([0, 0], [1.0, 2.0], "differently on the same input twice"),
    ],
)
def test_the_golden_input_finds_a_model_nobody_should_trade_on(
    runs: Path, monkeypatch: pytest.MonkeyPatch, actions: Sequence[int], values: Sequence[float], complaint: str
) -> None:
    said = iter(zip(actions, values, strict=True))

    def ask(*_: object) -> Decision:
        action, value = next(said)
        decision = decision_from_actions(np.array([action]), 5)
        decision.value[:] = value
        return decision

    monkeypatch.setattr(model_module, "ask", ask)
    with pytest.raises(ModelError, match=complaint):
        load_model(runs / "tiny" / "checkpoints" / "best")


# --- where checkpoints are found -------------------------------------------------------------------------------------


def test_a_bare_command_takes_the_best_of_the_newest_run(
    own_runs: Path, tmp_path: Path, make_checkpoint: Callable[..., Path]
) -> None:
    newer = make_checkpoint(own_runs / "newer" / "checkpoints", seed=1)
    os.utime(newer / METADATA, (4e9, 4e9))
    assert find_checkpoint(None, runs=own_runs, models=tmp_path / "models") == newer


def test_without_runs_it_takes_a_bundled_market_model_and_no_other(
    tmp_path: Path, make_checkpoint: Callable[..., Path], edit_metadata: Callable[..., None]
) -> None:
    models = tmp_path / "models"
    cart_pole = make_checkpoint(tmp_path / "a").resolve()
    edit_metadata(cart_pole, experiment={})
    market = make_checkpoint(tmp_path / "b").resolve()
    models.mkdir()
    cart_pole.rename(models / "a-cartpole")
    market.rename(models / "b-market")
    assert find_checkpoint(None, runs=tmp_path / "runs", models=models) == models / "b-market"


def test_a_checkpoint_may_be_named_by_its_directory_its_run_or_the_runs_name(own_runs: Path, tmp_path: Path) -> None:
    best = own_runs / "tiny" / "checkpoints" / "best"
    for given in (str(best), str(own_runs / "tiny"), "tiny"):
        assert find_checkpoint(given, runs=own_runs, models=tmp_path) == best


def test_nothing_to_serve_says_what_to_do(own_runs: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFound, match=r"make demo.*--checkpoint DIR"):
        find_checkpoint(None, runs=tmp_path / "none", models=tmp_path / "none")
    with pytest.raises(CheckpointNotFound, match=r"Runs in .*: tiny"):
        find_checkpoint("tinny", runs=own_runs, models=tmp_path / "none")


@pytest.mark.parametrize(
    "text",
    ["../outside", "tiny/../../outside", "/etc", "tiny/checkpoints/link", "", "tiny", "no\u0000body", "a" * 500, "~"],
)
def test_a_reload_never_leaves_its_roots(own_runs: Path, make_checkpoint: Callable[..., Path], text: str) -> None:
    outside = make_checkpoint(own_runs.parent / "elsewhere").resolve()
    outside.rename(own_runs.parent / "outside")
    (own_runs / "tiny" / "checkpoints" / "link").symlink_to(own_runs.parent / "outside")
    with pytest.raises(InvalidRequest, match="under the service's runs or models directory"):
        checkpoint_within(text, [own_runs])
    with pytest.raises(InvalidRequest):
        checkpoint_within(str(own_runs.parent / "outside"), [own_runs])
    assert checkpoint_within("tiny/checkpoints/best", [own_runs]) == own_runs / "tiny/checkpoints/best"
