"""Chance codes made readable."""

import numpy as np

from agent.checkpoint import CodeMeaning
from service.outlook import outlook

RISE = CodeMeaning(code=2, count=10, mean=0.01, quantiles={"0.05": -0.01, "0.5": 0.01, "0.95": 0.03})


def test_outcomes_come_most_probable_first_with_what_they_have_meant() -> None:
    rows = outlook(np.array([0.1, 0.0, 0.6, 0.3], dtype=np.float32), {2: RISE})
    assert [row.code for row in rows] == [2, 3, 0, 1]
    assert rows[0].mean_return == 0.01
    assert rows[0].quantiles == RISE.quantiles
    assert abs(sum(row.probability for row in rows) - 1.0) < 1e-6


def test_nothing_is_invented_for_a_code_training_never_gave() -> None:
    [row] = outlook(np.array([1.0], dtype=np.float32), {})
    assert row.mean_return is None
    assert row.quantiles is None


def test_equally_probable_codes_keep_their_order() -> None:
    rows = outlook(np.full(4, 0.25, dtype=np.float32), {})
    assert [row.code for row in rows] == [0, 1, 2, 3]


def test_a_policy_without_a_chance_model_has_no_outlook() -> None:
    assert outlook(np.zeros(0, dtype=np.float32), {}) == []
