"""What the load test leaves: how it was run, and a table."""

from __future__ import annotations

import shlex
import sys
from typing import Any


def command() -> str:
    """Return how to do it again."""
    options = [argument for argument in sys.argv[1:] if argument != "--record"]
    return "make test-load" + (f" ARGS={shlex.quote(shlex.join(options))}" if options else "")


def table(report: dict[str, Any]) -> str:
    """Return the report as Markdown."""
    streams = report["streams"]
    states = ", ".join(f"{count} {state}" for state, count in report["states"].items())
    rows = [
        "| request | times | median ms | 95th percentile | longest |",
        "|---|---|---|---|---|",
    ]
    for name, api in report["api"].items():
        rows.append(
            f"| {name} | {api['count']} | {api['median_ms']} | {api['p95_ms']} | {api['max_ms']} |"
        )
    memory = [
        f"Memory of the {name} on the way, MB: {' '.join(map(str, samples))}; at the end "
        f"{report['memory_growth'][name]:g} of that after the submissions."
        for name, samples in report["memory_mb"].items()
    ]
    facts = ", ".join(f"{key} {value}" for key, value in report["environment"].items())
    return "\n".join(
        [
            f"`{report['command']}`, {report['date']}: {report['jobs']} jobs of {report['plans']} "
            f"plans submitted in {report['submitted_s']:g} s by {report['clients']} clients "
            f"while {report['onlookers']} others looked on, to "
            f"{report['cluster_cpus']} CPUs of Ray's on a machine of {report['cores']} cores. "
            f"After {report['took_s']:g} s: {states}; none lost, none run twice. "
            f"{streams['open_at_once']} live streams open at once, of {streams['jobs']} jobs, each "
            f"to its job's end: {streams['epochs_told']} epochs told, each once. Median of all "
            f"requests {report['api_median_ms']:g} ms.",
            "",
            *rows,
            "",
            *memory,
            "",
            f"{facts}.",
            "",
        ]
    )
