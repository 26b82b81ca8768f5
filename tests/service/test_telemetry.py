"""Prometheus' metrics, and the alarms that ask for them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from service.api import telemetry
from service.api.app import create_app
from service.api.telemetry import JobCollector
from service.jobs.store import SPEC
from tests.service.conftest import Served
from tests.service.scripted_cluster import Service

Samples = dict[str, list[dict[str, str]]]


def collected(service: Service) -> dict[str, float]:
    """Return all samples by name and state."""
    found = {}
    for family in JobCollector(service.manager).collect():
        for sample in family.samples:
            found[" ".join((sample.name, *sample.labels.values()))] = sample.value
    return found


def fail(service: Service, job_id: str) -> None:
    service.tick()
    service.say(job_id, "ended", "refused", "cannot run")
    service.tick()
    assert service.store.status(job_id).state == "failed"


def test_ends_of_jobs_are_counted_and_never_taken_back(service: Service):
    name = "laminar_jobs_ended_total"
    assert collected(service)[f"{name} failed"] == 0  # `increase` needs to see it before
    first, second = service.submit(), service.submit()
    service.manager.stop(second)
    fail(service, first)
    service.manager.resume(first)
    assert (collected(service)["laminar_jobs failed"], collected(service)[f"{name} failed"]) == (
        0,
        1,
    )
    fail(service, first)
    service.manager.delete(first)
    counted = collected(service)
    assert [counted[f"{name} {s}"] for s in ("failed", "stopped", "succeeded")] == [2, 1, 0]
    service.restart()
    assert collected(service)[f"{name} stopped"] == 0  # as Prometheus expects of a restart


def test_the_dispatcher_is_as_old_as_the_service_before_its_first_round(
    service: Service, monkeypatch: pytest.MonkeyPatch
):
    clock = SimpleNamespace(now=1e6)
    monkeypatch.setattr(telemetry, "time", SimpleNamespace(monotonic=lambda: clock.now))
    collector = JobCollector(service.manager)

    def age() -> float:
        (family,) = [f for f in collector.collect() if f.name == "laminar_dispatcher_age_seconds"]
        return float(family.samples[0].value)

    clock.now += 70
    assert age() == 70  # it hangs in its first round
    service.manager.dispatcher.ticked_at = clock.now - 1
    assert age() == 1


def test_unreadable_jobs_are_counted(service: Service):
    job_id = service.submit()
    service.submit()
    (service.folder / job_id / SPEC).write_text("{")
    assert collected(service)["laminar_unreadable_jobs"] == 0
    service.restart()
    assert collected(service)["laminar_unreadable_jobs"] == 1


# -- docker/prometheus-rules.yaml ------------------------------------------------------------------


@pytest.fixture
def rules(repository: Path) -> list[dict[str, Any]]:
    tree = yaml.safe_load((repository / "docker/prometheus-rules.yaml").read_text())
    assert tree.keys() == {"groups"}
    (group,) = tree["groups"]
    assert group.keys() == {"name", "rules"}
    assert len(group["rules"]) >= 7
    return list(group["rules"])


@pytest.fixture
def exposed(served: Served) -> Samples:
    """Labels of each sample that /metrics has."""
    httpx.get(f"{served.url}/healthz")  # requests are there after the first
    found: Samples = {}
    for family in text_string_to_metric_families(httpx.get(f"{served.url}/metrics").text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(sample.labels)
    return found


def test_rules_are_well_formed_and_documented(rules: list[dict[str, Any]], repository: Path):
    for rule in rules:
        assert rule.keys() - {"for"} == {"alert", "expr", "labels", "annotations"}
        assert re.fullmatch(r"\d+[smh]", rule.get("for", "1m"))
        assert all(isinstance(v, str) for v in (rule["labels"] | rule["annotations"]).values())
        assert rule["labels"]["severity"] in ("critical", "warning")
    names = [rule["alert"] for rule in rules]
    page = (repository / "docs/operations.md").read_text()
    assert re.findall(r"^\| `(Laminar\w+)`", page, re.MULTILINE) == names


def test_rules_are_of_prometheus_language(rules: list[dict[str, Any]]):
    parser = pytest.importorskip("promql_parser")
    for rule in rules:
        parser.parse(rule["expr"])
    with pytest.raises(ValueError, match="invalid"):
        parser.parse("laminar_jobs > 0 and nothing starting")


def selectors(expr: str) -> Iterator[tuple[str, list[tuple[str, str, str]]]]:
    """Yield each metric of an expression, with its matchers: label, operator, value."""
    for name, matchers in re.findall(r"\b(laminar_\w+|up)\b(?:\{([^}]*)\})?", expr):
        yield name, re.findall(r'(\w+)(=~|!~|=)"([^"]*)"', matchers)


def test_rules_ask_for_what_there_is(rules: list[dict[str, Any]], exposed: Samples):
    asked = set()
    for rule in rules:
        for name, matchers in selectors(rule["expr"]):
            asked.add(name)
            if name == "up":  # which Prometheus makes itself
                continue
            assert name in exposed, rule["alert"]
            for label, operator, wanted in matchers:
                values = {labels[label] for labels in exposed[name]}
                for alternative in wanted.split("|") if operator == "=~" else [wanted]:
                    assert operator == "!~" or alternative in values, (rule["alert"], alternative)
    assert {"up", "laminar_jobs_ended_total", "laminar_unreadable_jobs"} <= asked


def test_the_alarm_for_slow_answers_leaves_out_downloads(
    rules: list[dict[str, Any]], service: Service
):
    (rule,) = [rule for rule in rules if rule["alert"] == "LaminarSlow"]
    ((_, matchers),) = selectors(rule["expr"])
    assert ("method", "=", "GET") in matchers
    (left_out,) = [
        value for label, operator, value in matchers if (label, operator) == ("route", "!~")
    ]
    paths = set(create_app(service.manager).openapi()["paths"])
    assert {path for path in paths if re.fullmatch(left_out, path)} == {
        "/v1/jobs/{job_id}/artifacts/{path}"
    }
