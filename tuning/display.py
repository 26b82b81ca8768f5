"""The table of a search in the terminal; a line for each event where there is no terminal."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from tuning.config import Search
from tuning.ledger import Ledger, Trial, best_trials
from tuning.report import number

_ROWS = 24
_COLORS = {"running": "cyan", "finished": "green", "failed": "red", "retried": "yellow"}


class SearchDisplay:
    """A context manager to be given to `run_search` as its listener.

    Args:
        search: Whose trials will be shown.
        console: Where to write; default is standard error.
        is_quiet: Show nothing.
    """

    def __init__(
        self, search: Search, console: Console | None = None, *, is_quiet: bool = False
    ) -> None:
        self._search, self._is_quiet = search, is_quiet
        self._console = console or Console(stderr=True)
        self._ledger: Ledger | None = None
        self._said: dict[str, tuple[object, ...]] = {}
        self._live: Live | None = None

    def __enter__(self) -> SearchDisplay:
        """Begin to draw."""
        if self._console.is_terminal and not self._is_quiet:
            self._live = Live(self.render(), console=self._console, refresh_per_second=2)
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

    def __call__(self, ledger: Ledger) -> None:
        """Take in where the search stands."""
        self._ledger = ledger
        if self._live is not None:
            self._live.update(self.render())
        elif not self._is_quiet:
            for trial in ledger.trials.values():
                self._say(trial)

    def _say(self, trial: Trial) -> None:
        state = (trial.status, trial.last.get("epoch"), trial.error)
        if self._said.get(trial.id) == state:
            return
        self._said[trial.id] = state
        params = ", ".join(f"{name}={number(value)}" for name, value in trial.params.items())
        metrics = "".join(
            f", {name} {number(trial.last[name])}"
            for name in self._search.settings.metrics
            if trial.epochs
        )
        error = "" if trial.error is None else f": {trial.error}"
        self._console.print(
            f"trial {trial.number} {trial.status}{error}, epoch {trial.last.get('epoch', 0)}"
            f"{metrics} ({params})",
            highlight=False,
            soft_wrap=True,
            markup=False,
        )

    def render(self) -> Group:
        """Return what the terminal shows now."""
        trials = list(self._ledger.trials.values()) if self._ledger is not None else []
        settings = self._search.settings
        best = best_trials(settings, trials)
        names = list(self._search.space.distributions())
        table = Table(box=None, pad_edge=False, header_style="dim")
        for name in ("trial", "status", "epoch", *settings.metrics):
            table.add_column(name, justify="left" if name == "status" else "right")
        for name in names:
            table.add_column(Text(name), overflow="ellipsis", no_wrap=True)
        shown = [t for t in trials if t.status == "running"] + best
        rest = [t for t in reversed(trials) if t not in shown]
        for trial in sorted({t.number: t for t in (shown + rest)[:_ROWS]}.items()):
            table.add_row(*self._cells(trial[1], names), style="bold" if trial[1] in best else "")
        return Group(self._summary(trials, best), *([table] if trials else []))

    def _cells(self, trial: Trial, names: list[str]) -> list[Text]:
        epoch = f"{trial.last.get('epoch', 0)}/{trial.last.get('num_epochs', '?')}"
        metrics = [number(trial.last[m]) if trial.epochs else "" for m in self._metrics()]
        status = Text(trial.status, style=_COLORS.get(trial.status, "dim"))
        params = [number(trial.params[n]) if n in trial.params else "" for n in names]
        return [Text(str(trial.number)), status, *map(Text, (epoch, *metrics, *params))]

    def _metrics(self) -> tuple[str, ...]:
        return self._search.settings.metrics

    def _summary(self, trials: list[Trial], best: list[Trial]) -> Text:
        if not trials or self._ledger is None:
            return Text("starting", style="dim")
        text = f"{len(trials)} of {self._search.num_trials} trials, {self._ledger.elapsed():.0f} s"
        if len(best) == 1:
            values = zip(self._metrics(), best[0].values(self._search.settings), strict=True)
            text += f"; best {best[0].number}: " + ", ".join(f"{m} {number(v)}" for m, v in values)
        elif best:
            text += f"; {len(best)} on the Pareto front"
        return Text(text)
