"""The chance nodes made readable: what the plan thinks may happen next, and what that has meant before.

A chance code is a number without a name. Training recorded, for each code, the next-bar returns of the bars it was
given to. Probability of the code now x meaning of the code then = the futures the plan weighed.

Legend: C chance codes.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from agent.checkpoint import CodeMeaning
from service.schemas import Outlook


def outlook(probabilities: NDArray[np.float32], meanings: Mapping[int, CodeMeaning]) -> list[Outlook]:
    """Outcomes after one action, most probable first, the lower code first among equals.

    probabilities: [C] of the codes after that action; [0] for a policy without a chance model.
    meanings: by code; a code that is absent was never given in training, and nothing is invented for it.
    """
    return [Outlook.model_validate(row) for row in outlook_rows(probabilities, meanings)]


def outlook_rows(probabilities: NDArray[np.float32], meanings: Mapping[int, CodeMeaning]) -> list[dict[str, object]]:
    """The same as plain rows, for an answer that has no time to check what it has just made."""
    order = np.argsort(-probabilities, kind="stable").tolist()
    chances = probabilities.tolist()
    rows: list[dict[str, object]] = []
    for code in order:
        meaning = meanings.get(code)
        known = (None, None) if meaning is None else (meaning.mean, meaning.quantiles)
        rows.append({"code": code, "probability": chances[code], "mean_return": known[0], "quantiles": known[1]})
    return rows
