"""Prints the versions of the node it runs on; the service reads them from its output."""

from __future__ import annotations

from service.jobs.cluster import PROBE_MARK
from service.jobs.versions import versions_here

if __name__ == "__main__":
    print(f"{PROBE_MARK}{versions_here().model_dump_json()}", flush=True)
