"""The first search on a machine, which compiles, gives the numbers of every later one, which loads."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]

SEARCH = """
import hashlib
import numpy as np
from agent.search import CoreWeights, SearchConfig, SearchEngine

weights = CoreWeights.random(0, actions=3, codes=32)
rng = np.random.default_rng(0)
digest = hashlib.sha256()
for batch in (1, 16):
    result = SearchEngine(SearchConfig(simulations=24), weights).search(
        rng.random((batch, 128), dtype=np.float32),
        rng.standard_normal((batch, 3)).astype(np.float32),
        rng.standard_normal(batch).astype(np.float32),
    )
    for field in (result.visits, result.root_value, result.q_values, result.chance_probabilities):
        digest.update(field.tobytes())
print(digest.hexdigest())
"""


def test_a_compiling_process_and_a_loading_one_agree_to_the_last_bit(tmp_path: Path) -> None:
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    compiled, loaded = (
        subprocess.run(
            [sys.executable, "-c", SEARCH], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
        ).stdout
        for _ in range(2)
    )
    assert list(tmp_path.rglob("*.nbc")), "nothing was cached, so nothing was compared"
    assert compiled == loaded
