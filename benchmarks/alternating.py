"""Several ways of doing the same work, timed by turns in one run, so that a busy machine slows all of them alike."""

import json
import statistics


def alternate(ways, pairs):
    """Seconds of each way, as a dict of lists: `ways` maps names to functions that return the seconds they took."""
    seconds = {name: [] for name in ways}
    for _ in range(pairs):
        for name, run in ways.items():
            seconds[name].append(run())
    return seconds


def ratios(seconds, reference):
    """How many times as fast as `reference` each other way was: the median over the rounds, by name."""
    return {
        name: statistics.median(slow / fast for slow, fast in zip(seconds[reference], own, strict=True))
        for name, own in seconds.items()
        if name != reference
    }


def table(seconds, reference):
    """The medians and ratios as lines of text, and as one line of JSON for other programs."""
    faster = ratios(seconds, reference)
    medians = {name: statistics.median(own) for name, own in seconds.items()}
    width = max(map(len, medians))
    lines = [f"{'':{width}}  seconds (lowest .. highest)"]
    for name, own in seconds.items():
        ratio = f"   {faster[name]:.2f} x as fast as {reference}" if name in faster else ""
        lines.append(f"{name:{width}}  {medians[name]:.3f} ({min(own):.3f} .. {max(own):.3f}){ratio}")
    return "\n".join([*lines, json.dumps({"seconds": medians, "ratios": faster})])
