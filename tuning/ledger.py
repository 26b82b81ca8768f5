"""The ledger of a search, `trials.jsonl`: what became of each trial, line by line, as it happens.

Written by the search, read by everybody else. It is plain JSON: to read one is to run nothing.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from laminar.errors import ConfigError
from tuning.settings import SearchConfig
from tuning.space import Params

if TYPE_CHECKING:
    from tuning.config import Search

Status = Literal["running", "finished", "stopped", "retried", "failed"]

ENDED: tuple[Status, ...] = ("finished", "stopped", "failed")

SEARCH_FILE, LEDGER_FILE, BEST_FILE, REPORT_FILE = (
    "search.yaml",
    "trials.jsonl",
    "best.yaml",
    "report.html",
)


@dataclass(frozen=True)
class Trial:
    """A trial so far."""

    id: str
    """Also the name of its folder."""
    number: int
    """From 0, in the order of their starts."""
    params: Params
    """Of its last report: PBT changes them."""
    status: Status
    error: str | None = None
    """One line, of the last failure."""
    epochs: tuple[dict[str, Any], ...] = ()
    """What was reported, in the order of the epochs."""

    @property
    def last(self) -> dict[str, Any]:
        """The last report; empty before the first."""
        return self.epochs[-1] if self.epochs else {}

    @property
    def is_whole(self) -> bool:
        """Whether it was trained to its end."""
        return bool(self.last.get("done"))

    def values(self, settings: SearchConfig) -> tuple[float, ...]:
        """Return the values of the search's metrics at its last epoch."""
        return tuple(float(self.last[metric]) for metric in settings.metrics)


@dataclass
class Ledger:
    """The file and what it says.

    Args:
        folder: Of the search.
    """

    folder: Path
    trials: dict[str, Trial] = field(default_factory=dict)
    seconds: float = 0.0
    """That all sessions took, up to the last line."""
    cut_bytes: int = 0
    """Across cuts so far, all trials and seeds together."""

    def __post_init__(self) -> None:
        self._path = self.folder / LEDGER_FILE
        self._last_time: float | None = None
        if self._path.is_file():
            for text in self._path.read_text().splitlines():
                try:
                    self._take(json.loads(text))
                except json.JSONDecodeError:
                    continue  # cut short by a kill

    def elapsed(self) -> float:
        """Return the seconds that all sessions took, up to now in the one under way."""
        return self.seconds + time.time() - (self._last_time or time.time())

    def begin(self) -> None:
        """Note that a session begins: the time before it does not count."""
        if self._path.is_file():
            content = self._path.read_bytes()
            if content and not content.endswith(b"\n"):
                self._path.write_bytes(content[: content.rfind(b"\n") + 1])
        self._write({"event": "session"})

    def report(self, trial_id: str, params: Params, metrics: dict[str, Any]) -> None:
        """Note an epoch."""
        line = {"trial": trial_id, "params": params, "metrics": metrics}
        self._write({"event": "report", **line})

    def note(self, trial_id: str, params: Params, status: Status, error: str | None = None) -> None:
        """Note what became of a trial."""
        line = {"trial": trial_id, "params": params, "status": status, "error": error}
        self._write({"event": "status", **line})

    def _write(self, line: dict[str, Any]) -> None:
        line = {"time": time.time(), **line}
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._take(line)

    def _take(self, line: dict[str, Any]) -> None:
        if self._last_time is not None and line["event"] != "session":
            self.seconds += max(0.0, line["time"] - self._last_time)
        self._last_time = line["time"]
        if line["event"] == "session":
            return
        name = line["trial"]
        new = Trial(name, len(self.trials), line["params"], "running")
        trial = self.trials.get(name, new)
        if line["event"] == "report":
            metrics = line["metrics"]
            trial = replace(trial, params=line["params"])
            earlier = [m for m in trial.epochs if m["epoch"] < metrics["epoch"]]
            if all(m["epoch"] != metrics["epoch"] for m in trial.epochs):
                self.cut_bytes += metrics["epoch_cut_bytes"]
            trial = replace(trial, epochs=(*earlier, metrics))
        else:
            trial = replace(trial, status=line["status"], error=line["error"])
        self.trials[name] = trial


def open_search(folder: str | Path) -> tuple[Search, Ledger]:
    """Read a search's folder.

    Raises:
        ConfigError: It is none.
    """
    from tuning.config import load_search  # it needs torch, which a ledger does not

    folder = Path(folder).expanduser().resolve()
    if not (folder / SEARCH_FILE).is_file():
        raise ConfigError(
            f"a search's folder must contain {SEARCH_FILE}",
            got=f"none in {folder}",
            fix="name the folder that `laminar tune` printed",
        )
    return load_search(folder / SEARCH_FILE), Ledger(folder)


def best_trials(settings: SearchConfig, trials: list[Trial]) -> list[Trial]:
    """Return the best trial, or with several metrics those that no other one beats in all.

    Where any trial was trained to its end only such ones count: a shorter one is cheaper for
    nothing.

    Returns:
        The best, alone, or the Pareto front in the order of the first metric; empty when nothing
        was reported.
    """
    told = [trial for trial in trials if trial.epochs]
    candidates = [trial for trial in told if trial.is_whole] or told
    signs = [1.0 if mode == "min" else -1.0 for mode in settings.modes]

    def losses(trial: Trial) -> tuple[float, ...]:
        return tuple(s * v for s, v in zip(signs, trial.values(settings), strict=True))

    candidates.sort(key=lambda trial: (losses(trial), trial.number))
    if len(signs) == 1:
        return candidates[:1]

    def beats(a: Trial, b: Trial) -> bool:
        pairs = list(zip(losses(a), losses(b), strict=True))
        return all(x <= y for x, y in pairs) and any(x < y for x, y in pairs)

    return [t for t in candidates if not any(beats(other, t) for other in candidates)]
