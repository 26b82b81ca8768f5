"""The report of a search: one HTML file that needs no network."""

from __future__ import annotations

import html
import logging
import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuning.config import Search
from tuning.ledger import REPORT_FILE, Trial, best_trials, open_search
from tuning.space import Distribution, Options, Space

if TYPE_CHECKING:
    import optuna
    from plotly.graph_objects import Figure

_STYLE = """
body { font: 14px/1.5 system-ui, sans-serif; max-width: 1280px; margin: 2em auto; padding: 0 1em;
       color: #222 }
table { border-collapse: collapse; display: block; overflow-x: auto }
th, td { text-align: right; padding: .25em .5em;
         white-space: nowrap; border-bottom: 1px solid #ddd }
th { color: #777; font-weight: normal } tr.best { background: #e8f4ea }
td.text, th.text { text-align: left } h2 { margin-top: 2em; font-weight: 600 }
.note { color: #777 }
"""
_GREY_TO_BLUE = [[0, "#d3d9e0"], [0.5, "#6ea3cf"], [1, "#0b3d7a"]]


def write_report(folder: str | Path) -> Path:
    """Write `report.html` into a search's folder.

    It has the trials as a table, and where there are enough of them parallel coordinates, the
    importance of each parameter, learning curves, and of several metrics the Pareto front. Reads
    the search file and the ledger, nothing else.

    Returns:
        Its path.

    Raises:
        ConfigError: The folder is no search.
    """
    search, ledger = open_search(folder)
    trials = list(ledger.trials.values())
    best = best_trials(search.settings, trials)
    sections = [_heading(search, trials, ledger.seconds), _table(search, trials, best)]
    script: bool | str = True  # plotly itself goes into the page, once
    for title, note, figure in _figures(search, trials):
        picture = figure.to_html(full_html=False, include_plotlyjs=script)
        sections.append(f"<h2>{title}</h2>\n<p class=note>{note}</p>\n{picture}")
        script = False
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Search '
        f"{html.escape(ledger.folder.name)}</title><style>{_STYLE}</style></head><body>\n"
        f"<h1>Search {html.escape(ledger.folder.name)}</h1>\n" + "\n".join(sections)
    )
    path = ledger.folder / REPORT_FILE
    path.write_text(page + "\n</body></html>\n")
    return path


def to_study(search: Search, trials: Sequence[Trial]) -> optuna.Study:
    """Return the trials that reported something as a study of Optuna.

    With one metric each epoch is an intermediate value.
    """
    import optuna

    settings = search.settings
    kinds = optuna.study.StudyDirection
    directions = [kinds.MAXIMIZE if mode == "max" else kinds.MINIMIZE for mode in settings.modes]
    study = optuna.create_study(directions=directions)
    distributions = search.space.distributions()
    for trial in trials:
        if not trial.epochs or not all(map(math.isfinite, trial.values(settings))):
            continue
        curve = {int(m["epoch"]): float(m[settings.metrics[0]]) for m in trial.epochs}
        study.add_trial(
            optuna.trial.create_trial(
                params=dict(trial.params),
                distributions={n: _optuna(distributions[n]) for n in trial.params},
                values=list(trial.values(settings)),
                intermediate_values=curve if len(directions) == 1 else {},
            )
        )
    return study


def importances(search: Search, trials: Sequence[Trial]) -> dict[str, float]:
    """Return each parameter's share in the first metric, of those that every trial has.

    None at all where the metric is the same in all trials.
    """
    import optuna

    study = to_study(search, trials)
    names = [n for n, d in search.space.unconditional().items() if _varies(study, n)]
    if len(study.trials) < 4 or not names or len({t.values[0] for t in study.trials}) == 1:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = optuna.importance.get_param_importances(
            study,
            evaluator=optuna.importance.FanovaImportanceEvaluator(seed=0),
            params=names,
            target=_value_of(0),
        )
    return dict(found)


def _optuna(distribution: Distribution) -> optuna.distributions.BaseDistribution:
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    if isinstance(distribution, Options):
        return CategoricalDistribution(distribution.labels)
    low, high = distribution.low, distribution.high
    if distribution.is_integer:
        return IntDistribution(int(low), int(high))
    is_log = distribution.kind == "loguniform"
    return FloatDistribution(low, high, step=distribution.step, log=is_log)


def _varies(study: optuna.Study, name: str) -> bool:
    return len({trial.params.get(name) for trial in study.trials}) > 1


def _heading(search: Search, trials: Sequence[Trial], seconds: float) -> str:
    settings = search.settings
    goal = " and ".join(
        f"{name} {'up' if mode == 'max' else 'down'}"
        for name, mode in zip(settings.metrics, settings.modes, strict=True)
    )
    scheduler = "no scheduler" if settings.scheduler is None else settings.scheduler.name
    return (
        f"<p>{html.escape(goal)} · {len(trials)} of {search.num_trials} trials, "
        f"{settings.seeds} seed{'s' if settings.seeds > 1 else ''} each · {settings.algorithm}, "
        f"{scheduler} · {seconds / 60:.1f} minutes</p>"
    )


def _table(search: Search, trials: Sequence[Trial], best: Sequence[Trial]) -> str:
    metrics = list(dict.fromkeys([*search.settings.metrics, "test_accuracy", "cut_bytes"]))
    names = list(search.space.distributions())
    head = "".join(f"<th>{html.escape(n)}</th>" for n in ["trial", *metrics, "epochs", "s"])
    head += "".join(f'<th class="text">{html.escape(n)}</th>' for n in [*names, "status"])
    rows = []
    for trial in sorted(trials, key=lambda t: (t not in best, t.number)):
        cells = [str(trial.number)]
        cells += [number(trial.last[m]) if trial.epochs else "" for m in metrics]
        cells += [str(trial.last.get("epoch", 0)), number(trial.last.get("seconds", 0.0))]
        texts = [number(trial.params[n]) if n in trial.params else "" for n in names]
        texts.append(trial.status if trial.error is None else f"{trial.status}: {trial.error}")
        line = "".join(f"<td>{html.escape(c)}</td>" for c in cells)
        line += "".join(f'<td class="text">{html.escape(t)}</td>' for t in texts)
        rows.append(f"<tr{' class=best' if trial in best else ''}>{line}</tr>")
    return f"<table><tr>{head}</tr>\n" + "\n".join(rows) + "</table>"


def number(value: object) -> str:
    """Return a value as a short text: four digits, thousands and millions apart."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if not isinstance(value, int | float):
        return str(value)
    if abs(value) >= 1e5 and math.isfinite(value):
        return f"{value:,.0f}"
    return f"{value:.4g}"


def _figures(search: Search, trials: Sequence[Trial]) -> list[tuple[str, str, Figure]]:
    """Return title, explanation and figure of each part that the trials suffice for."""
    import optuna

    logging.getLogger("optuna").setLevel(logging.ERROR)
    draw = optuna.visualization
    study = to_study(search, trials)
    metrics, space = search.settings.metrics, search.space
    if not study.trials:
        return []
    found: list[tuple[str, str, Figure]] = []
    if len(metrics) > 1 and len(metrics) < 4:
        front = draw.plot_pareto_front(study, target_names=list(metrics))
        note = "Red or dark points are beaten by no other in all metrics; a point shows its trial."
        found.append(("Pareto front", note, front))
    if len(metrics) == 1:
        curves = draw.plot_intermediate_values(study)
        curves.update_layout(xaxis_title="epoch", yaxis_title=metrics[0])
        found.append(("Learning curves", "Each trial, epoch by epoch.", curves))
    names = [name for name in space.unconditional() if _varies(study, name)]
    if names and len(study.trials) > 1:
        for index, metric in enumerate(metrics):
            lines = _parallel_coordinates(search, study.trials, names, index)
            note = f"A line is a trial; its colour is {metric}. Drag along an axis to pick some."
            found.append((f"Parallel coordinates: {metric}", note, lines))
    shares = importances(search, trials)
    if shares:
        found.append(("Importance", _importance_note(space), _bars(shares, metrics[0])))
    for _, _, figure in found:
        figure.update_layout(
            title=None, template="plotly_white", margin_t=max(30, figure.layout.margin.t or 0)
        )
    return found


def _parallel_coordinates(
    search: Search, trials: Sequence[optuna.trial.FrozenTrial], names: Sequence[str], index: int
) -> Figure:
    """Draw a line for each trial; what is good is dark, in whichever direction."""
    from plotly.graph_objects import Figure, Parcoords

    values = [trial.values[index] for trial in trials]
    axes: list[dict[str, Any]] = [{"label": search.settings.metrics[index], "values": values}]
    distributions = search.space.distributions()
    for name in names:
        axis = _axis(distributions[name], [trial.params[name] for trial in trials])
        axes.append({"label": name, **axis})
    line = {
        "color": values,
        "colorscale": _GREY_TO_BLUE,
        "reversescale": search.settings.modes[index] == "min",
        "showscale": True,
    }
    figure = Figure(Parcoords(line=line, dimensions=axes, labelfont_size=13, tickfont_size=12))
    figure.update_layout(margin={"t": 80})
    return figure


def _axis(distribution: Distribution, values: Sequence[Any]) -> dict[str, Any]:
    """Return plotly's description of an axis over the whole distribution."""
    if isinstance(distribution, Options):
        labels = list(distribution.labels)
        return {
            "values": [labels.index(value) for value in values],
            "tickvals": list(range(len(labels))),
            "ticktext": [number(label) for label in labels],
        }
    low, high = distribution.low, distribution.high
    if distribution.kind != "loguniform":
        return {"values": list(values), "range": [low, high]}
    ends = (low, math.sqrt(low * high), high)
    return {
        "values": [math.log10(value) for value in values],
        "range": [math.log10(low), math.log10(high)],
        "tickvals": [math.log10(value) for value in ends],
        "ticktext": [number(value) for value in ends],
    }


def _value_of(index: int) -> Callable[[optuna.trial.FrozenTrial], float]:
    return lambda trial: trial.values[index]


def _importance_note(space: Space) -> str:
    left_out = len(space.distributions()) - len(space.unconditional())
    note = "Share of a parameter in the variance of the metric (functional ANOVA)."
    return note + (" What only some trials have is left out." if left_out else "")


def _bars(shares: dict[str, float], metric: str) -> Figure:
    from plotly.graph_objects import Bar, Figure

    names, values = list(shares)[::-1], list(shares.values())[::-1]
    texts = [f"{value:.0%}" for value in values]
    figure = Figure(Bar(x=values, y=names, orientation="h", text=texts))
    figure.update_layout(xaxis_title=f"share in {metric}", height=120 + 40 * len(names))
    return figure
