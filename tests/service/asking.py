"""Requests as strangers and people send them, and what an error must look like."""

from __future__ import annotations

import httpx


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def is_problem(answer: httpx.Response) -> bool:
    found = answer.json()
    is_json = answer.headers["content-type"] == "application/problem+json"
    return is_json and found["status"] == answer.status_code and bool(found["detail"])
