"""A decision in one sentence that a person can check against the numbers beside it."""

from collections.abc import Sequence

from service.schemas import Outlook


def explain(
    *,
    action: int,
    targets: Sequence[float],
    policy: Sequence[float],
    q_values: Sequence[float],
    value: float,
    held: float,
    band: float,
    outlook: Sequence[Outlook],
) -> str:
    """Why this target: what the search preferred, by how much, and what it expects next.

    targets, policy, q_values: [A]. held: position before, as the targets are. band: changes smaller than this are not
    traded. outlook: most probable first.
    """
    target = targets[action]
    parts = [f"{_verb(target, held, band)} with {policy[action]:.0%} of the policy", f"value {value:+.3f}"]
    others = [row for row in range(len(targets)) if row != action and policy[row] > 0.0]
    if others:
        second = max(others, key=lambda row: (policy[row], -row))
        parts.append(
            f"next best {_position(targets[second])} at {policy[second]:.0%}, "
            f"{q_values[second] - q_values[action]:+.3f} in value"
        )
    known = [(one.probability, one.mean_return) for one in outlook if one.mean_return is not None]
    weight = sum(probability for probability, _ in known)
    if weight > 0.0:
        mean = sum(probability * mean_return for probability, mean_return in known) / weight
        up = sum(probability for probability, mean_return in known if mean_return > 0.0) / weight
        parts.append(f"next bar {mean:+.2%} on average, up with {up:.0%}")
    return "; ".join(parts)


def _verb(target: float, held: float, band: float) -> str:
    """What going from the held position to the target is called."""
    if target == 0.0:
        return "stay flat" if held == 0.0 else f"close {held:+.2f}"
    if abs(target - held) < band:
        return f"stay {_position(target)}"
    return f"open {target:+g}" if held == 0.0 else f"from {held:+.2f} to {target:+g}"


def _position(target: float) -> str:
    return "flat" if target == 0.0 else f"at {target:+g}"
