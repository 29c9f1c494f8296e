"""One decision's search, drawn: what was weighed, what chance was expected to do, and what that was worth."""

from collections.abc import Callable, Mapping, Sequence

from rich.tree import Tree

from agent.search.result import Node, SearchTrees

ActionName = Callable[[int | Sequence[int]], str]  # of an action's number, or of the categories of its parts


def draw(
    trees: SearchTrees,
    row: int,
    *,
    action_names: ActionName = str,
    code_names: Mapping[int, str] | None = None,
    depth: int = 4,
    least_visits: int = 2,
) -> Tree:
    """The search tree of one row as a rich `Tree`, most visited branches first.

    action_names, code_names: how to call an action and a chance code (what it has meant in training). depth: edges from
    the root that are drawn; an environment step is two. least_visits: branches visited less are counted, not drawn.
    """
    nodes = list(trees.nodes(row))
    children: dict[int, list[Node]] = {}
    for node in nodes[1:]:
        children.setdefault(node.parent, []).append(node)
    root = nodes[0]
    drawing = Tree(f"state  value {root.value:+.3f}  network {root.raw_value:+.3f}  {root.visits} visits")

    def grow(branch: Tree, parent: Node) -> None:
        if parent.depth >= depth:
            return
        below = sorted(children.get(parent.index, []), key=lambda node: -node.visits)
        shown = [node for node in below if node.visits >= least_visits]
        for node in shown:
            grow(branch.add(_label(node, action_names, code_names or {})), node)
        if len(shown) < len(below):
            rest = below[len(shown) :]
            visits = sum(node.visits for node in rest)
            branch.add(f"[dim]{len(rest)} more, {visits} {'visit' if visits == 1 else 'visits'}[/]")

    grow(drawing, root)
    return drawing


def _label(node: Node, action_names: ActionName, code_names: Mapping[int, str]) -> str:
    """One line per node. An action leads to a chance node, a code to a decision node."""
    if node.kind == "chance":
        name = f"[bold]{action_names(node.choice or node.edge)}[/]"
        return f"{name}  Q {node.value:+.3f}  prior {node.probability:.0%}  {node.visits} visits"
    meaning = code_names.get(node.edge)
    named = f"code {node.edge}" + (f" ({meaning})" if meaning else "")
    return (
        f"{named}  chance {node.probability:.0%}  reward {node.reward:+.3f}  value {node.value:+.3f}  "
        f"{node.visits} visits"
    )
