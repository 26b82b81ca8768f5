"""Searches as jobs: files they may name, and what they need and take.

A value of a search file may be one of many, in lists within lists, so that paths are looked for in
the whole tree by their keys: each one that any trial could ever have is confined.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from laminar.errors import ConfigError
from service.jobs.models import Estimate, Needs
from service.jobs.paths import check_is_data, left_out, resolve
from service.jobs.search_models import SearchFile

if TYPE_CHECKING:
    from tuning.config import Search

_PATHS = {"root": "data.root", "weights": "model.weights"}
_LEFT_OUT = {"cache_dir": "data.cache_dir", "scratch_dir": "stored.scratch_dir"}
_SPLITS = ("train_split", "test_split")
_KEYS = (*_PATHS, *_LEFT_OUT, *_SPLITS)

_MOST_LEVELS = 50
_MOST_FOLDERS = 1000
_MOST_TRIALS = 10_000
_MOST_SEEDS = 100


def confined_search(tree: SearchFile, roots: Sequence[Path]) -> SearchFile:
    """Return a search file with its paths resolved and its concurrency said.

    Where `search.max_concurrent` is left out it is 1: a job holds the room that it was given to its
    end, and to take all that there is would be the queue's end.

    Args:
        tree: As it was submitted.
        roots: Folders that jobs may read from.

    Raises:
        ConfigError: It names a file elsewhere, or is no plain data.
    """
    found: SearchFile = _confined(tree, "", roots, 0)
    check_splits(found)
    settings = found.get("search")
    if settings is None:
        settings = {}
    if isinstance(settings, dict):
        concurrent = settings.get("max_concurrent")
        found["search"] = {**settings, "max_concurrent": 1 if concurrent is None else concurrent}
    return found


def search_paths(tree: SearchFile) -> list[tuple[str, str]]:
    """Return key and value of everything in a search file that names a file or folder."""
    return [(_PATHS[key], value) for key, value in _texts(tree, "") if key in _PATHS]


def _confined(node: Any, key: str, roots: Sequence[Path], level: int) -> Any:
    """Walk the tree; `key` is the innermost one around a value that says what it is."""
    if level > _MOST_LEVELS:
        raise ConfigError(
            f"a search file must have <= {_MOST_LEVELS} levels",
            got="more",
            fix="put fewer lists and mappings into each other",
        )
    if isinstance(node, dict):
        return {
            _whole(name): _confined(child, name if name in _KEYS else key, roots, level + 1)
            for name, child in node.items()
        }
    if isinstance(node, list):
        return [_confined(child, key, roots, level + 1) for child in node]
    if key in _LEFT_OUT and node is not None:
        raise left_out(_LEFT_OUT[key], node)
    if key in _PATHS and isinstance(node, str):
        return str(resolve(_PATHS[key], node, roots))
    return _whole(node) if isinstance(node, str) else node


def _whole(text: str) -> str:
    """Return a text, unless it has half a character: no file could hold that."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ConfigError(
            "texts of a search file must be of whole characters", got=ascii(text), fix="mend it"
        ) from None
    return text


def _texts(node: Any, key: str) -> Iterator[tuple[str, str]]:
    if isinstance(node, dict):
        for name, child in node.items():
            yield from _texts(child, name if name in _KEYS else key)
    elif isinstance(node, list):
        for child in node:
            yield from _texts(child, key)
    elif isinstance(node, str):
        yield key, node


def check_splits(tree: SearchFile) -> None:
    """Refuse a folder of a data set that is outside of it, whichever of them go together.

    Raises:
        ConfigError: One is, or there are too many.
    """
    texts = list(_texts(tree, ""))
    folders = {value for key, value in texts if key == "root"}
    splits = {(key, value) for key, value in texts if key in _SPLITS}
    if len(folders) * len(splits) > _MOST_FOLDERS:
        raise ConfigError(
            f"a search must not try more than {_MOST_FOLDERS} folders of images",
            got=f"{len(folders)} roots and {len(splits)} splits",
            fix="list fewer of them",
        )
    for folder in folders:
        for key, name in splits:
            resolve(f"data.{key}", str(Path(folder) / name), [Path(folder)])


# -- where torch may be ----------------------------------------------------------------------------


def estimate_search(tree_json: str) -> tuple[Needs, Estimate]:
    """Check a search as `laminar tune` does, and count.

    Needs are those of the largest trial, each part at its largest. Bytes are those of the largest
    stages of any plan, seconds the mean of all plans times the trials; what ends early takes less.

    Raises:
        UserError: Some trial could not run.
    """
    from service.jobs.estimate import estimate_plan
    from tuning.config import parse_search, plans
    from tuning.space import at_params

    search = parse_search(json.loads(tree_json))
    _check_measure(search)
    for corner in search.corners:
        try:
            check_is_data(corner.config)
        except ConfigError as error:
            raise at_params(error, corner.params) from None
    needs = _needs(search)
    found = [estimate_plan(plan) for plan in plans(search)]
    largest = max(found, key=lambda one: one.memory_bytes)
    num_at_once, num_runs = needs.num_groups, needs.num_groups * search.settings.seeds
    return needs, Estimate(
        num_workers=needs.total_bundles,
        cpus=needs.cpus * needs.total_bundles,
        gpus=needs.gpus * needs.total_bundles,
        stage_bytes=largest.stage_bytes,
        memory_bytes=largest.memory_bytes * num_runs,
        seconds=_seconds(search, [one.seconds for one in found], num_at_once),
        num_trials=search.num_trials,
        num_concurrent=num_at_once,
    )


def _needs(search: Search) -> Needs:
    each = [Needs.of(corner.config) for corner in search.corners]
    return Needs(
        num_bundles=max(needs.num_bundles for needs in each) * search.settings.seeds,
        cpus=max(needs.cpus for needs in each),
        gpus=max(needs.gpus for needs in each),
        num_groups=min(search.settings.max_concurrent or 1, search.num_trials),
    )


def _seconds(search: Search, each: Sequence[float | None], num_at_once: int) -> float | None:
    known = [seconds for seconds in each if seconds is not None]
    if len(known) < len(each):
        return None
    total = fmean(known) * math.ceil(search.num_trials / num_at_once)
    budget = search.settings.time_budget_s
    return total if budget is None else min(total, budget)


def _check_measure(search: Search) -> None:
    for key, value, most in (
        ("search.num_trials", search.num_trials, _MOST_TRIALS),
        ("search.seeds", search.settings.seeds, _MOST_SEEDS),
    ):
        if value > most:
            raise ConfigError(f"{key} must be <= {most} in a job", got=value, fix="lower it")
