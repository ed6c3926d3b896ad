"""What a whole-model job says about a model: its verdict, and its times as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_OTHERS = ("ceiling", "sdpa")


def concluded(result: dict[str, Any]) -> dict[str, Any]:
    """The result with its verdict; versions that are not ours may fail without failing ours."""
    problems = [
        f"{name}: {check['problem']}"
        for checks in ("checks", "replay_checks")
        for name, check in result.get(checks, {}).items()
        if name not in _OTHERS and not check["passed"]
    ]
    result["passed"] = not problems
    if problems:
        result["problem"] = problems[0]
    return result


def shown(result: Mapping[str, Any]) -> str:
    """A model as a few lines of text."""
    sites = result.get("sites", {})
    head = f"{result['name']}: "
    if not result["passed"]:
        return f"{head}FAILED: {result['problem']}"
    lines = [head + (_layers(result) if "algorithms" in result else rewritten(sites))]
    for name, check in result["checks"].items():
        error = f", error {check['max_error']:.2g}" if "max_error" in check else ""
        lines.append(f"  {name}: {result['launches'][name]['operators']} operators{error}" + _failed(check))
    for state in ("warm", "cold"):
        own = {name: values[state]["median_us"] for name, values in result.get("times", {}).items()}
        if own:
            lines.append(f"  {state} cache: " + ", ".join(f"{name} {us:.1f} us" for name, us in own.items()))
            lines += _by_algorithm(result, own) if "algorithms" in result else ["    " + ", ".join(_ratios(own))]
    return "\n".join(lines)


def chosen(version: Mapping[str, Any]) -> str:
    """How many layers of a version each algorithm has, and which version it is the same as."""
    counts = ", ".join(f"{count} {name}" for name, count in sorted(version["layers"].items()))
    return counts + (f"; as {version['same']}" if version["same"] else "")


def _layers(result: Mapping[str, Any]) -> str:
    return f"{sum(site['found'] for site in result['sites'].values())} layers by each algorithm"


def _by_algorithm(result: Mapping[str, Any], times_us: Mapping[str, float]) -> list[str]:
    """Of every version the time, how it compares with the original, and the share of the bound that it reaches."""
    lines = [f"    the convolutions' bound: {result['bound_us']:.1f} us"]
    names = sorted(result["algorithms"], key=lambda name: (not name.startswith("choice"), name))
    for name in ("original", "original, channels last", *names):
        version = result["algorithms"].get(name)
        us = times_us.get((version["same"] if version else None) or name)
        if us is None:
            continue
        layers = f" ({chosen(version)})" if version else ""
        ratio, share = times_us["original"] / us, result["bound_us"] / us
        lines.append(
            f"    {name}: {us:.1f} us, {ratio:.2f} times as fast as the original, {share:.0%} of the bound{layers}"
        )
    return lines


def rewritten(sites: Mapping[str, Mapping[str, int]]) -> str:
    """How many sites of each kind are rewritten."""
    counts = (f"{own['rewritten']} of {own['found']} {kind} sites" for kind, own in sites.items())
    return ", ".join(counts) + " rewritten" if sites else "no sites"


def _failed(check: Mapping[str, Any]) -> str:
    return "" if check["passed"] else f", NOT COMPARABLE: {check['problem']}"


def _ratios(times_us: Mapping[str, float]) -> list[str]:
    """Original over ours, what part of the ceiling's speed ours reaches, and the attention alone."""
    ours = times_us.get("ours")
    if ours is None:
        return ["nothing was rewritten"]
    found = [f"ours {times_us['original'] / ours:.2f} times as fast as the original"]
    if "sdpa" in times_us:
        found.append(f"{times_us['sdpa'] / ours:.2f} times as fast as sdpa")
    if "ceiling" in times_us:
        ceiling = times_us["ceiling"]
        found.append(f"{ceiling / ours:.0%} of the ceiling")
        if ours > ceiling and times_us["original"] > ceiling:
            found.append(f"attention {(times_us['original'] - ceiling) / (ours - ceiling):.2f} times as fast")
    return found
