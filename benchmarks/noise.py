"""How far the cost relative to Naive may be trusted: what a row reads whose steps are Naive's."""

from __future__ import annotations

from benchmarks.collected import Collected

_TWIN = "naive-tuned"  # Naive, but for the rate that it sets once a task


def twin_costs(collected: Collected) -> dict[str, float]:
    """Return the cost relative to Naive of tuned Naive, whose steps are the same.

    Args:
        collected: all runs.

    Returns:
        By protocol, fastest run over fastest run; 1 but for the load that they met and for
        machines of one kind that are not alike. Without those that have not both.
    """
    found = {}
    for protocol in collected.protocols:
        if (cost := collected.cost(protocol, _TWIN, "naive")) is not None:
            found[protocol] = cost
    return found


def noise_sentence(collected: Collected, protocol: str) -> str:
    """Return how rough a protocol's costs relative to Naive are, in words.

    Args:
        collected: all runs.
        protocol: its name.

    Returns:
        A sentence; empty without tuned Naive anywhere.
    """
    costs = twin_costs(collected)
    if not costs:
        return ""
    here = f"{costs[protocol]:.2f} here and " if protocol in costs else ""
    low, high = min(costs.values()), max(costs.values())
    return (
        f"× Naive is rough: {_TWIN}, whose steps are Naive's, reads {here}{low:.2f} to {high:.2f} "
        "over the protocols. OVERHEAD.md has the cost measured in turns."
    )
