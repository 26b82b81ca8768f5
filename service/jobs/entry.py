"""The driver of one try of a job, on the cluster: `python -m service.jobs.entry HOME ATTEMPT`.

The command is fixed; what it trains is the data at home, a folder or a URI. It works in that
folder, or in one of its own that is mirrored there (`laminar/mirror.py`). It writes
`attempts/NNNN.json` and never `status.json`, which it reads: a stop, or a later attempt, is how the
service speaks to it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

from laminar.errors import ConfigError, ResourceError, UserError
from laminar.mirror import Copier, Mirror
from laminar.storage import Storage, write_durably
from service.jobs.models import (
    AttemptReport,
    JobRequest,
    JobSpec,
    JobStatus,
    Outcome,
    Progress,
    SearchRequest,
    now,
)
from service.jobs.search_models import SearchProgress
from service.jobs.store import LOG, RUN, SPEC, STATUS, attempt_file

_WATCH_S = 1.0
_STORE_WATCH_S = 3.0
_REPORT_S = 1.0
_MOST_READ_FAILURES = 30


class Reporter:
    """Writes what the driver says, at most once a second while it trains."""

    def __init__(self, folder: Path, attempt: int) -> None:
        self._path = folder / attempt_file(attempt)
        self._written_s = 0.0
        self._progress: Progress | None = None
        self._search: SearchProgress | None = None

    def starting(self) -> None:
        """Say that the driver is there."""
        self._write(AttemptReport(phase="starting", at=now()))

    def __call__(self, event: Any) -> None:
        """Take in what the trainer tells."""
        from laminar import progress as events

        if not isinstance(event, events.Progress):
            return
        is_first = self._progress is None and event.phase != "starting"
        if event.phase != "starting" or self._progress is not None:
            self._progress = Progress.model_validate(asdict(event))
        if self._progress is not None:
            self._running(is_first)

    def search(self, progress: SearchProgress) -> None:
        """Take in where a search is."""
        is_first = self._search is None
        self._search = progress
        self._running(is_first)

    def _running(self, is_first: bool) -> None:
        if is_first or time.monotonic() - self._written_s > _REPORT_S:
            self._write(AttemptReport(phase="running", at=now(), **self._where()))
            self._written_s = time.monotonic()

    def _where(self) -> dict[str, Any]:
        return {"progress": self._progress, "search_progress": self._search}

    def ended(self, outcome: Outcome, reason: str) -> None:
        """Say what came of it."""
        self._write(
            AttemptReport(phase="ended", outcome=outcome, reason=reason, at=now(), **self._where())
        )

    def _write(self, report: AttemptReport) -> None:
        write_durably(self._path, report.model_dump_json().encode())


def watch(home: Storage, attempt: int, interrupt: Callable[[], None]) -> None:
    """Look at the job's status until it says that this try is to end, or has.

    A later attempt means that the service has given this one up for lost: two must never write to
    one run, so the process ends at once, whatever it was doing.
    """
    num_failures, is_told = 0, False
    while True:
        content: bytes | None = b""
        try:
            content = home.read(STATUS)
            status = JobStatus.model_validate_json(content or b"")
            num_failures = 0
        except (OSError, ValueError):
            is_deleted = content is None and not home.is_local
            num_failures += _MOST_READ_FAILURES // 3 if is_deleted else 1
            if num_failures >= _MOST_READ_FAILURES:
                os._exit(4)
        else:
            if status.last.attempt != attempt:
                os._exit(3)
            if status.state not in ("starting", "running") and not is_told:
                is_told = True
                interrupt()
        time.sleep(_WATCH_S if home.is_local else _STORE_WATCH_S)


def run(
    folder: Path, home: Storage, attempt: int, settle: Callable[[], None] = lambda: None
) -> int:
    """Train what the folder says; return the exit code.

    Args:
        folder: To work in.
        home: Of the job, which may be the folder.
        attempt: Number of the try.
        settle: Called when all but what came of it is in the folder.
    """
    reporter = Reporter(folder, attempt)
    reporter.starting()
    outcome, reason = _attempt(folder, home, attempt, reporter)
    print(f"{outcome}: {reason}", file=sys.stderr, flush=True)
    settle()
    reporter.ended(outcome, reason)
    return 0 if outcome == "succeeded" else 1


def _attempt(folder: Path, home: Storage, attempt: int, reporter: Reporter) -> tuple[Outcome, str]:
    from actors.trainer import RunStopped

    try:
        spec = JobSpec.model_validate_json((folder / SPEC).read_bytes())
        with _interruptible(home, attempt):
            check(spec)
            _connect(Mirror.of(folder))
            if isinstance(spec.request, SearchRequest):
                from service.jobs.search_driver import search

                return search(folder, spec.request, reporter.search)
            return "succeeded", _train(folder, spec.request, reporter)
    except (KeyboardInterrupt, RunStopped) as error:
        kept = getattr(error, "last_checkpoint", None)
        return "stopped", f"stopped; last checkpoint: {kept or 'none'}"
    except ResourceError as error:
        return "no_room", str(error)
    except UserError as error:
        return "refused", str(error)
    except Exception as error:
        traceback.print_exc()
        lines = str(error).splitlines()
        return "failed", lines[0][:500] if lines else type(error).__name__


def _connect(mirror: Mirror | None) -> None:
    import ray

    environment = None if mirror is None else {"env_vars": mirror.environment()}
    ours = signal.getsignal(signal.SIGTERM)
    # The stages' output comes to this process, and so into the job's log.
    ray.init("auto", log_to_driver=True, logging_level=logging.ERROR, runtime_env=environment)
    signal.signal(signal.SIGTERM, ours)  # Ray's own aborts the process


def _train(folder: Path, request: JobRequest, reporter: Reporter) -> str:
    from rich.console import Console

    from laminar.run_directory import RunDirectory
    from service.progress import ProgressDisplay

    run = RunDirectory(folder / RUN)
    display = ProgressDisplay(Console(file=sys.stderr, force_terminal=False, width=200))

    def tell(event: Any) -> None:
        display(event)
        reporter(event)

    try:
        with display:
            _trainer(folder, request, run, tell).fit()
    finally:
        _plot(run)
    return f"test accuracy {run.read_metrics()[-1]['test_accuracy']:.4f}"


def _plot(run: Any) -> None:
    """Leave the plot of a run; a run without one is no failure."""
    from service.plot import plot_run

    try:
        if metrics := run.read_metrics():
            plot_run(metrics, run.open_config(), run.plot_file)
    except Exception:
        traceback.print_exc()


def _trainer(folder: Path, request: JobRequest, run: Any, callback: Any) -> Any:
    """Return a trainer for the run as it stands: new, or from its last checkpoint."""
    from ray.train import CheckpointConfig, RunConfig

    from actors import LayerParallelTrainer
    from laminar.checkpoint import list_checkpoints

    run_config = RunConfig(
        storage_path=str(folder),
        name=RUN,
        checkpoint_config=CheckpointConfig(num_to_keep=request.keep),
    )
    if list_checkpoints(run.checkpoints):
        return LayerParallelTrainer.resume(run.path, run_config=run_config, callback=callback)
    shutil.rmtree(run.path, ignore_errors=True)  # of a try that had not finished an epoch
    if (mirror := Mirror.of(run.path)) is not None:
        mirror.remove(run.path)
    return LayerParallelTrainer(request.config, run_config=run_config, callback=callback)


def check(spec: JobSpec) -> None:
    """Compare versions and paths with what the service saw when it took the job."""
    from service.jobs import paths, searches
    from service.jobs.versions import differences, versions_here

    odd = differences(spec.versions, versions_here())
    if odd:
        raise ConfigError(
            "service and cluster must agree on versions",
            got=", ".join(odd),
            fix="install the same on both, or use the same image",
        )
    request = spec.request
    if isinstance(request, SearchRequest):
        named = searches.search_paths(request.search_file)
    else:
        named = paths.named_paths(request.config)
    for key, path in named:
        if Path(path).resolve() != Path(path):
            raise ConfigError(
                f"{key} must lead where it led when the job was submitted",
                got=Path(path).resolve(),
                expected=path,
                fix="submit the job anew",
            )
    # Within their data set links are allowed, so that of splits it is asked where they lead now.
    if isinstance(request, SearchRequest):
        searches.check_splits(request.search_file)
    else:
        paths.check_splits(request.config)


@contextlib.contextmanager
def _interruptible(home: Storage, attempt: int) -> Iterator[None]:
    """Turn SIGTERM, and a stop that the status asks for, into KeyboardInterrupt, once."""
    is_over = threading.Event()

    def interrupt(number: int, frame: FrameType | None) -> None:
        if is_over.is_set():
            return
        is_over.set()
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, interrupt)
    arguments = (home, attempt, lambda: os.kill(os.getpid(), signal.SIGINT))
    threading.Thread(target=watch, args=arguments, daemon=True).start()
    try:
        yield
    finally:
        is_over.set()


def main() -> None:
    """Train, and end the process."""
    code = 1
    try:
        where, attempt = sys.argv[1], int(sys.argv[2])
        if "://" not in where and not Path(where).is_dir():
            raise FileNotFoundError(f"{where}: is the storage mounted here?")
        home = Storage.open(where)
        code = _run_logged(home, attempt) if home.is_local else _run_mirrored(home, attempt)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    os._exit(code)  # Ray's own exit hangs now and then, and there is nothing left to do


def _run_mirrored(home: Storage, attempt: int) -> int:
    status = JobStatus.model_validate_json(home.read(STATUS) or b"")
    if status.last.attempt != attempt:
        return 3  # late: what is in the store is another's
    folder = Path(tempfile.mkdtemp(prefix="laminar-job-")).resolve()
    mirror = Mirror(folder, home.uri())
    os.environ.update(mirror.environment())
    copier = Copier(mirror, fetched=lambda name: name in (SPEC, LOG) or name.startswith(f"{RUN}/"),
                    not_written=(SPEC, STATUS))  # fmt: skip
    copier.fetch()
    copier.start()

    def settle() -> None:
        copier.settle()
        _prune(folder)

    code = _run_logged(home, attempt, folder, settle)
    copier.settle()
    shutil.rmtree(folder, ignore_errors=True)
    return code


def _prune(folder: Path) -> None:
    """Prune once more: a checkpoint stays while the next one is not in the store."""
    from laminar.checkpoint import prune

    request = JobSpec.model_validate_json((folder / SPEC).read_bytes()).request
    if not isinstance(request, SearchRequest):
        prune(folder / RUN / "checkpoints", request.keep)


def _run_logged(
    home: Storage,
    attempt: int,
    folder: Path | None = None,
    settle: Callable[[], None] = lambda: None,
) -> int:
    """Write all that is printed, by this process and by what it starts, to the job's log."""
    folder = folder or Path(home.root)
    log = os.open(folder / LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(log, stream.fileno())
    print(f"-- attempt {attempt}, {now():%Y-%m-%d %H:%M:%S} UTC", file=sys.stderr, flush=True)
    return run(folder, home, attempt, settle)


if __name__ == "__main__":
    main()
