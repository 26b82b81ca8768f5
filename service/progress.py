"""The progress display of the terminal; plain lines where there is no terminal."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Table
from rich.text import Text

from laminar import progress as events

_COLORS = {"parallel": "cyan", "correction": "yellow"}
_ROWS = 8


class ProgressDisplay:
    """A context manager to be given to the trainer as its callback.

    Args:
        console: Where to write; default is standard error.
        is_quiet: Show nothing.
    """

    def __init__(self, console: Console | None = None, *, is_quiet: bool = False) -> None:
        self._console = console or Console(stderr=True)
        self._is_quiet = is_quiet
        self._epochs: list[dict[str, Any]] = []
        self._num_epochs = 0
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            TaskProgressColumn(),
            TextColumn("{task.fields[figures]}"),
        )
        self._task = self._bar.add_task("starting", total=None, figures="")
        self._live: Live | None = None

    def __enter__(self) -> ProgressDisplay:
        """Begin to draw."""
        if self._console.is_terminal and not self._is_quiet:
            self._live = Live(self.render(), console=self._console, refresh_per_second=4)
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave the last state on the screen."""
        if self._live is not None:
            self._live.update(self.render(), refresh=True)
            self._live.stop()

    def __call__(self, event: events.Event) -> None:
        """Take in what the trainer tells."""
        if isinstance(event, events.Notice):
            self._console.print(
                f"note: {event.message}", highlight=False, markup=False, soft_wrap=True
            )
        elif isinstance(event, events.EpochEnd):
            self._epochs.append(event.metrics)
            if self._live is None and not self._is_quiet:
                self._console.print(
                    _line(event.metrics, self._num_epochs), highlight=False, soft_wrap=True
                )
        elif isinstance(event, events.DataProgress):
            self._bar.update(
                self._task,
                description="reading images",
                completed=event.num_done,
                total=event.num_images,
                figures=f"{event.num_done:,} of {event.num_images:,}",
            )
        else:
            self._num_epochs = event.num_epochs
            self._bar.update(
                self._task,
                description=f"epoch {event.epoch}/{event.num_epochs}",
                completed=event.num_batches_done,
                total=event.num_batches,
                figures=_figures(event),
            )
        if self._live is not None:
            self._live.update(self.render())

    def render(self) -> Group:
        """Return what the terminal shows now."""
        table = Table(box=None, pad_edge=False, header_style="dim")
        for name in ("epoch", "parallel", "train loss", "train acc", "test loss", "test acc", "s"):
            table.add_column(name, justify="right")
        for m in self._epochs[-_ROWS:]:
            table.add_row(*_cells(m))
        return Group(self._bar, *([table] if self._epochs else []))


def _figures(event: events.Progress) -> Text:
    text = Text.assemble((event.phase, _COLORS.get(event.phase, "dim")))
    if event.samples_per_s is not None:
        text.append(f"  {event.samples_per_s:,.0f} samples/s")
    if event.eta_s is not None:
        text.append(f"  ETA {_clock(event.eta_s)}")
    if event.loss is not None and event.accuracy is not None:
        text.append(f"  loss {event.loss:.3f}  accuracy {event.accuracy:.1%}")
    return text


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _cells(m: dict[str, Any]) -> list[str]:
    parallel = sum(p["num_batches"] for p in m["phases"] if p["phase"] == "parallel")
    return [
        str(m["epoch"]),
        f"{parallel / m['num_batches']:.0%}",
        f"{m['train_loss']:.4f}",
        f"{m['train_accuracy']:.2%}",
        f"{m['test_loss']:.4f}",
        f"{m['test_accuracy']:.2%}",
        f"{sum(m['seconds'].values()):.1f}",
    ]


def _line(m: dict[str, Any], num_epochs: int) -> str:
    epoch, parallel, train_loss, train_acc, test_loss, test_acc, seconds = _cells(m)
    return (
        f"epoch {epoch}/{num_epochs}: {parallel} parallel, train loss {train_loss} "
        f"accuracy {train_acc}, test loss {test_loss} accuracy {test_acc}, {seconds} s, "
        f"{m['samples_per_s']:,.0f} samples/s"
    )
