"""What stands beside Tune's loop: it writes the ledger and keeps whole copies of Tune's state."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.schedulers import ASHAScheduler, TrialScheduler

from tuning.ledger import Ledger

SNAPSHOTS = "state"

_TELL_S = 0.5
_KEPT = 2


class Bookkeeper(tune.Callback):
    """Writes down what happens, tells a listener, and saves Tune's state whenever it changes.

    Tune copies its state to the folder in the background, file by file: a kill in between would
    leave a torn copy. A snapshot appears whole or not.

    Args:
        ledger: To write.
        scheduler: Of the search; the rungs of ASHA are saved with the rest.
        listener: Called with the ledger about twice a second.
    """

    def __init__(
        self,
        ledger: Ledger,
        scheduler: TrialScheduler | None,
        listener: Callable[[Ledger], None] | None,
    ) -> None:
        self.scheduler = scheduler
        self._ledger, self._listener = ledger, listener
        self._told_at, self._is_first_step = 0.0, True
        self._saved: tuple[float, ...] = ()

    def tell(self) -> None:
        """Tell the listener where the search stands."""
        self._told_at = time.monotonic()
        if self._listener is not None:
            self._listener(self._ledger)

    def restore_scheduler(self) -> None:
        """Give ASHA back what it knew."""
        saved = newest_snapshot(self._ledger.folder)
        path = None if saved is None else saved / _SCHEDULER
        if isinstance(self.scheduler, ASHAScheduler) and path is not None and path.is_file():
            self.scheduler.restore(str(path))

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Let trials whose checkpoint a kill has left dangling go on from their own folders."""
        if not self._is_first_step:
            return
        self._is_first_step = False
        for trial in trials:
            if trial.checkpoint is not None and not Path(trial.checkpoint.path).is_dir():
                trial.run_metadata.checkpoint_manager._latest_checkpoint_result = None

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Note it."""
        self._ledger.note(trial.trial_id, trial.config, "running")

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Note the epoch."""
        kept = {name: value for name, value in result.items() if name in _REPORTED}
        kept["done"] = result["epoch"] >= result["num_epochs"]
        self._ledger.report(trial.trial_id, result["params"], kept)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Note whether it came to its end or was stopped."""
        known = self._ledger.trials.get(trial.trial_id)
        status = "finished" if known is not None and known.is_whole else "stopped"
        self._ledger.note(trial.trial_id, trial.config, status)  # type: ignore[arg-type]

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Note why it is tried again."""
        self._ledger.note(trial.trial_id, trial.config, "retried", _last_error(trial))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Note why it failed."""
        self._ledger.note(trial.trial_id, trial.config, "failed", _last_error(trial))

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Save what has changed; tell the listener now and then."""
        if trials:
            self._snapshot(Path(trials[0].storage.experiment_driver_staging_path))
        if time.monotonic() - self._told_at >= _TELL_S:
            self.tell()

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        """Save what Tune wrote last."""
        if trials:
            self._snapshot(Path(trials[0].storage.experiment_driver_staging_path))

    def _snapshot(self, staging: Path) -> None:
        """Copy Tune's state from where it has just been written, by this very thread."""
        files = sorted([*staging.glob("*.json"), *staging.glob("*.pkl")])
        written = tuple(path.stat().st_mtime for path in files)
        if not files or written == self._saved:
            return
        self._saved = written
        root = self._ledger.folder / SNAPSHOTS
        older = _snapshots(root)
        number = int(older[-1].name) + 1 if older else 0
        fresh = root / f".{number}"
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        for path in files:
            shutil.copy2(path, fresh / path.name)
        if isinstance(self.scheduler, ASHAScheduler):
            self.scheduler.save(str(fresh / _SCHEDULER))
        fresh.rename(root / f"{number:08d}")
        for folder in older[: 1 - _KEPT]:
            shutil.rmtree(folder, ignore_errors=True)


_SCHEDULER = "scheduler.state"
_REPORTED = (
    *("epoch", "num_epochs", "test_accuracy", "test_loss", "train_accuracy", "train_loss"),
    *("cut_bytes", "seconds", "epoch_cut_bytes", "by_seed", "cloned_from"),
)


def newest_snapshot(folder: Path) -> Path | None:
    """Return the newest whole copy of Tune's state, if any."""
    found = _snapshots(folder / SNAPSHOTS)
    return found[-1] if found else None


def _snapshots(root: Path) -> list[Path]:
    return sorted(path for path in root.glob("[0-9]*") if path.is_dir())


def _last_error(trial: Any) -> str:
    """Return the last line of what a trial's failure left, without Ray's wrapping."""
    text = ""
    if trial.error_file:
        with contextlib.suppress(OSError):
            text = Path(trial.error_file).read_text()
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason was left"
