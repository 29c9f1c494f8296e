"""The search finds what an independent implementation found, node by node.

Two files of known answers, both computed by mctx: tests/golden/search.json, which the project makes itself
(tests/golden/make_search_golden.py says how), and the trees the design was handed, one folder above the repository
or wherever SMU0_GOLDEN points; those are skipped where they are not there.
"""

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from agent.search import Node, Roots, SearchConfig, SearchEngine, SearchResult, TableModel
from agent.search.reference import search_reference

REPOSITORY = Path(__file__).resolve().parents[2]
OWN = REPOSITORY / "tests" / "golden" / "search.json"
HANDED = Path(os.environ.get("SMU0_GOLDEN", REPOSITORY.parent / "shared" / "golden"))


class Problem(NamedTuple):
    config: SearchConfig
    model: TableModel
    roots: Roots
    options: dict[str, Any]  # of `search`
    expected: dict[str, Any]


def read_cases() -> list[Any]:
    files = [OWN, *sorted(HANDED.glob("*.json"))]
    cases = [(file, case) for file in files for case in json.loads(file.read_text())["cases"]]
    return [pytest.param(case, id=f"{file.stem}-{case['seed']}") for file, case in cases]


def parse(case: dict[str, Any], *, precision: str = "float32") -> Problem:
    tables = case["tables"]
    model = TableModel.from_strides(
        policy_logits=tables["PL"],
        values=tables["V"],
        chance_logits=tables["CL"],
        afterstate_values=tables["AV"],
        rewards=tables["R"],
    )
    config = SearchConfig(
        simulations=case["sims"],
        discount=case["discount"],
        root=case.get("root", "puct"),
        max_depth=case.get("max_depth"),
        max_considered_actions=case.get("max_considered", 16),
        precision=precision,
    )
    options: dict[str, Any] = {}
    if case.get("invalid_actions"):
        options["action_mask"] = [[invalid == 0 for invalid in case["invalid_actions"]]]
    if case.get("gumbel"):
        options["root_noise"] = [case["gumbel"]]
    return Problem(config, model, model.roots([case["s0"]]), options, case["expected"])


def assert_as_expected(result: SearchResult, nodes: list[Node], expected: dict[str, Any]) -> None:
    assert result.visits[0].tolist() == expected["root_visits"]
    assert result.action[0] == expected["greedy_action"]
    np.testing.assert_allclose(result.action_weights[0], expected["action_weights"], rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(result.q_values[0], expected["root_qvalues"], rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(result.root_value[0], expected["root_value"], rtol=1e-3, atol=1e-6)
    found = [(node.index, node.parent, node.edge, node.kind, node.visits) for node in nodes]
    wanted = [
        (node["i"], node["parent"], -1 if node["edge"] is None else node["edge"], node["kind"], node["visits"])
        for node in expected["nodes"]
    ]
    assert found == wanted
    for name in ("value", "raw_value"):
        np.testing.assert_allclose(
            [getattr(node, name) for node in nodes],
            [node[name] for node in expected["nodes"]],
            rtol=1e-3,
            atol=1e-6,
            err_msg=name,
        )


@pytest.mark.parametrize("case", read_cases())
def test_the_reference_grows_the_golden_tree(case: dict[str, Any]) -> None:
    problem = parse(case)
    found = search_reference(problem.config, problem.model, *problem.roots, **problem.options)
    assert_as_expected(found.result, found.nodes[0], problem.expected)


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("case", read_cases())
def test_the_engine_grows_the_golden_tree(case: dict[str, Any], precision: str) -> None:
    problem = parse(case, precision=precision)
    engine = SearchEngine(problem.config, problem.model)
    result = engine.search(*problem.roots, **problem.options, with_tree=True)
    assert result.trees is not None
    assert_as_expected(result, list(result.trees.nodes(0)), problem.expected)
