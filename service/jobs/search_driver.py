"""What the driver of a search does: run it, or go on with it, and say where it stands."""

from __future__ import annotations

import math
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from service.jobs.models import Outcome, SearchRequest
from service.jobs.search_models import SearchProgress
from service.jobs.store import RUN

if TYPE_CHECKING:
    from tuning.config import Search
    from tuning.ledger import Ledger, Trial
    from tuning.search import SearchResult
    from tuning.settings import SearchConfig


def search(
    folder: Path, request: SearchRequest, tell: Callable[[SearchProgress], None]
) -> tuple[Outcome, str]:
    """Search from the first trial to the last, or go on where an earlier try was.

    Ray must be connected. Tune takes SIGINT for itself and ends after the step under way.

    Args:
        folder: Of the job.
        request: Of the job.
        tell: Told where the search is, about twice a second.

    Returns:
        What came of it, and in words.

    Raises:
        UserError: It cannot run, or the cluster has no room for one trial.
        RuntimeError: Tune itself failed.
    """
    from rich.console import Console

    from tuning.config import parse_search
    from tuning.display import SearchDisplay
    from tuning.ledger import SEARCH_FILE
    from tuning.search import resume_search, run_search

    found = parse_search(request.search_file)
    display = SearchDisplay(found, Console(file=sys.stderr, force_terminal=False, width=200))

    def listen(ledger: Ledger) -> None:
        display(ledger)
        trials = list(ledger.trials.values())
        if trials:
            tell(progress_of(found.settings, found.num_trials, trials))

    # Ray ends jobs by SIGTERM.
    signal.signal(signal.SIGTERM, _interrupt)
    run = folder / RUN
    with display:
        if (run / SEARCH_FILE).is_file():
            retry = is_barren(run)
            result = resume_search(run, retry_failed=retry, address="auto", listener=listen)
        else:
            shutil.rmtree(run, ignore_errors=True)  # of a try that had not begun
            result = run_search(
                found, storage_path=folder, name=RUN, address="auto", listener=listen
            )
    tell(progress_of(found.settings, found.num_trials, result.trials))
    _report(result)
    return outcome_of(found, result)


def is_barren(run: Path) -> bool:
    """Whether all trials so far have failed: then going on is to try those again."""
    from tuning.ledger import Ledger

    trials = Ledger(run).trials.values()
    return bool(trials) and all(trial.status == "failed" for trial in trials)


def progress_of(settings: SearchConfig, num_trials: int, trials: Sequence[Trial]) -> SearchProgress:
    """Return where a search is."""
    from tuning.ledger import ENDED, best_trials

    best = best_trials(settings, list(trials))
    return SearchProgress(
        num_trials=num_trials,
        num_done=sum(trial.status in ENDED for trial in trials),
        num_running=sum(trial.status == "running" for trial in trials),
        best_trial=best[0].number if best else None,
        best=values_of(settings, best[0]) if best else {},
    )


def values_of(settings: SearchConfig, trial: Trial) -> dict[str, float | None]:
    """Return a trial's metrics at its last epoch; None for what JSON has no number for."""
    values = zip(settings.metrics, trial.values(settings), strict=True)
    return {name: value if math.isfinite(value) else None for name, value in values}


def outcome_of(search: Search, result: SearchResult) -> tuple[Outcome, str]:
    """Return what came of a search, and in words."""
    from tuning.report import number

    if not result.is_complete:
        done = progress_of(search.settings, search.num_trials, result.trials).num_done
        return "stopped", f"stopped; {done} of {search.num_trials} trials are done"
    if not result.best:
        errors = [trial.error for trial in result.trials if trial.error]
        return "refused", f"no trial came to an end: {errors[-1] if errors else 'no budget'}"
    best = result.best[0]
    if len(result.best) > 1:
        num_best = len(result.best)
        return "succeeded", f"{num_best} of {len(result.trials)} trials are on the Pareto front"
    values = zip(search.settings.metrics, best.values(search.settings), strict=True)
    figures = ", ".join(f"{metric} {number(value)}" for metric, value in values)
    return "succeeded", f"best of {len(result.trials)} trials: number {best.number}, {figures}"


def _report(result: SearchResult) -> None:
    """Leave the report; a search without one is no failure."""
    from tuning.report import write_report

    try:
        if result.best:
            write_report(result.path)
    except Exception:
        traceback.print_exc()


def _interrupt(number: int, frame: FrameType | None) -> None:
    os.kill(os.getpid(), signal.SIGINT)
