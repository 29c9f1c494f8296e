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
    order = np.argsort(-probabilities, kind="stable")
    return [_outcome(int(code), float(probabilities[code]), meanings.get(int(code))) for code in order]


def _outcome(code: int, probability: float, meaning: CodeMeaning | None) -> Outlook:
    if meaning is None:
        return Outlook(code=code, probability=probability, mean_return=None, quantiles=None)
    return Outlook(code=code, probability=probability, mean_return=meaning.mean, quantiles=meaning.quantiles)
