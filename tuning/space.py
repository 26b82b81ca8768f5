"""The space of a search: a training configuration in which a leaf may be a distribution.

    optimizer:
      lr: {loguniform: [0.01, 0.5]}
    filters:
      choice:
        - {pool: 1, cast: fp32}
        - {pool: 2, cast: {choice: [fp16, int8]}}

A parameter goes by its dotted path, `optimizer.lr`. What lies inside an option exists only where
that option is taken, and its name says so: `filters[1].cast`. For values that go together without
being of one section there is the key `together`, whose content is merged into the configuration:

    together:
      choice:
        - {num_stages: 2, cuts: [4]}
        - {num_stages: 3, cuts: [3, 6]}
"""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import yaml

from laminar.config import Config
from laminar.config_file import validate_config
from laminar.errors import ConfigError

RANGES = ("uniform", "loguniform", "quniform", "randint")
OPTIONS = ("choice", "grid")
TOGETHER = "together"

Value = bool | int | float | str | None
Params = dict[str, Value]
"""The parameters of a trial by name; an option that is a mapping or a list, as compact YAML."""


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included."""

    kind: Literal["uniform", "loguniform", "quniform", "randint"]
    low: float
    high: float
    step: float | None = None
    """Of `quniform`."""

    @property
    def is_integer(self) -> bool:
        """Whether all its numbers are integers of Python's type."""
        return self.kind == "randint"

    @property
    def corners(self) -> tuple[Value, ...]:
        """The two bounds."""
        return self.low, self.high

    @property
    def num_steps(self) -> int:
        """Of `quniform`, from `low` to `high`."""
        return round((self.high - self.low) / self.step) if self.step else 0

    @property
    def steps(self) -> list[float]:
        """Of `quniform` all numbers: low, low + step, ..., high."""
        assert self.step is not None
        return [self.low + k * self.step for k in range(self.num_steps + 1)]

    def clip(self, value: float) -> float:
        """Return the nearest number of the range."""
        value = min(max(value, self.low), self.high)
        if self.step is not None:
            value = self.low + round((value - self.low) / self.step) * self.step
        return round(value) if self.is_integer else value


@dataclass(frozen=True)
class Options:
    """A list to choose from; an option may hold distributions again."""

    kind: Literal["choice", "grid"]
    trees: tuple[Any, ...]
    labels: tuple[Value, ...]

    @property
    def corners(self) -> tuple[Value, ...]:
        """All options."""
        return self.labels


Distribution = Range | Options
Visit = Callable[[str, Distribution], Value]


@dataclass(frozen=True)
class Corner:
    """One setting at the border of the space."""

    params: Params
    config: Config


class Space:
    """A training configuration whose leaves may be distributions.

    Args:
        tree: Plain mappings, lists and values, as YAML gives them.

    Raises:
        ConfigError: A distribution is malformed.
    """

    def __init__(self, tree: Mapping[str, Any]) -> None:
        self._tree: Any = _parse(tree, "")

    def build(self, visit: Visit) -> dict[str, Any]:
        """Walk the tree, ask for each distribution on the way, return the training tree.

        Args:
            visit: Called with name and distribution in a fixed order; returns a number of the
                range or a label of the options.
        """
        tree: dict[str, Any] = _walk(self._tree, "", visit)
        _merge(tree, tree.pop(TOGETHER, {}), TOGETHER)
        return tree

    def config(self, params: Mapping[str, Value]) -> Config:
        """Return the configuration that these parameters say.

        Raises:
            ConfigError: The values do not make a valid configuration.
        """
        return validate_config(self.build(lambda name, _: params[name]))

    def distributions(self) -> dict[str, Distribution]:
        """Return all distributions by name, those inside every option included."""
        return dict(_all(self._tree, ""))

    def unconditional(self) -> dict[str, Distribution]:
        """Return the distributions that every trial has."""
        return {name: d for name, d in self.distributions().items() if "[" not in name}

    def corners(self, limit: int = 1000) -> Iterator[Corner]:
        """Yield the borders of the space, all combinations of bounds and options.

        Where these are more than `limit`, so many of them: half in turns, so that each bound and
        each option comes up, half at random, always the same ones.

        Raises:
            ConfigError: One is no valid configuration; the error names the parameters.
        """
        found = list(itertools.islice(self.combinations(), limit + 1))
        if len(found) > limit:
            turns, chance = _in_turns(), _at_random(limit)
            found = [self._sample(turns) for _ in range(limit // 2)]
            found += [self._sample(chance) for _ in range(limit // 2)]
        for params in found:
            try:
                yield Corner(params, self.config(params))
            except ConfigError as error:
                raise at_params(error, params) from None

    def combinations(self) -> Iterator[Params]:
        """Yield every combination of options (and, of ranges, bounds), in order."""
        path: list[int] = []
        while True:
            counts: list[int] = []

            def take(
                name: str,
                distribution: Distribution,
                path: list[int] = path,
                counts: list[int] = counts,
            ) -> Value:
                corners = distribution.corners
                if len(counts) == len(path):
                    path.append(0)
                counts.append(len(corners))
                return corners[path[len(counts) - 1]]

            yield self._sample(take)
            while path and path[-1] == counts[len(path) - 1] - 1:
                path.pop()
            if not path:
                return
            path[-1] += 1

    def _sample(self, visit: Visit) -> Params:
        params: Params = {}

        def note(name: str, distribution: Distribution) -> Value:
            params[name] = visit(name, distribution)
            return params[name]

        self.build(note)
        return params


def label(option: Any) -> Value:
    """Return an option's value as a parameter: itself, or compact YAML for mappings and lists."""
    if not isinstance(option, dict | list):
        return option  # type: ignore[no-any-return]
    text: str = yaml.safe_dump(option, default_flow_style=True, sort_keys=False, width=10**6)
    return text.strip()


def at_params(error: ConfigError, params: Params) -> ConfigError:
    """Return the error with the parameters at which it came up."""
    where = ", ".join(f"{name}={value}" for name, value in params.items())
    return ConfigError(
        error.rule, got=f"{error.got} at {where}", expected=error.expected, fix=error.fix
    )


def _in_turns() -> Visit:
    used: Counter[str] = Counter()

    def visit(name: str, distribution: Distribution) -> Value:
        used[name] += 1
        return distribution.corners[(used[name] - 1) % len(distribution.corners)]

    return visit


def _at_random(seed: int) -> Visit:
    generator = random.Random(seed)
    return lambda name, distribution: generator.choice(distribution.corners)


def _join(name: str, key: object) -> str:
    return f"{name}.{key}" if name else str(key)


def _walk(node: Any, name: str, visit: Visit) -> Any:
    if isinstance(node, Range):
        value = visit(name, node)
        return int(value) if node.is_integer else float(value)  # type: ignore[arg-type]
    if isinstance(node, Options):
        index = node.labels.index(visit(name, node))
        return _walk(node.trees[index], f"{name}[{index}]", visit)
    if isinstance(node, dict):
        return {key: _walk(child, _join(name, key), visit) for key, child in node.items()}
    if isinstance(node, list):
        return [_walk(child, _join(name, i), visit) for i, child in enumerate(node)]
    return node


def _merge(tree: dict[str, Any], more: Any, name: str) -> None:
    """Put the values of a second tree into the first, where neither may hide the other's."""
    if not isinstance(more, dict):
        raise ConfigError(
            f"`{name}` must be a mapping, or a choice of mappings",
            got=more,
            fix="write, say, {num_stages: 2, cuts: [4]}",
        )
    for key, value in more.items():
        if isinstance(tree.get(key), dict):
            _merge(tree[key], value, _join(name, key))
        elif key in tree:
            raise ConfigError(
                f"`{_join(name, key)}` must not be set elsewhere, too",
                got=f"{tree[key]} and {value}",
                fix="keep one of them",
            )
        else:
            tree[key] = value


def _all(node: Any, name: str) -> Iterator[tuple[str, Distribution]]:
    if isinstance(node, Range | Options):
        yield name, node
    if isinstance(node, Options):
        for index, child in enumerate(node.trees):
            yield from _all(child, f"{name}[{index}]")
    elif isinstance(node, dict):
        for key, child in node.items():
            yield from _all(child, _join(name, key))
    elif isinstance(node, list):
        for index, child in enumerate(node):
            yield from _all(child, _join(name, index))


# -- reading -------------------------------------------------------------------------------------


def _parse(node: Any, name: str) -> Any:
    if isinstance(node, Mapping):
        kinds = [key for key in node if key in (*RANGES, *OPTIONS)]
        if not kinds:
            return {key: _parse(child, _join(name, key)) for key, child in node.items()}
        kind = kinds[0]
        if len(node) > 1:
            raise ConfigError(
                f"`{name}` must be a distribution and nothing else",
                got=", ".join(map(str, node)),
                expected=f"only `{kind}`",
                fix="remove the other keys, or put them into the options",
            )
        read = _parse_range if kind in RANGES else _parse_options
        return read(kind, node[kind], name)
    if isinstance(node, list):
        return [_parse(child, _join(name, i)) for i, child in enumerate(node)]
    return node


def _parse_range(kind: Any, bounds: Any, name: str) -> Range:
    wanted = "[low, high, step]" if kind == "quniform" else "[low, high]"

    def refuse(rule: str) -> ConfigError:
        return ConfigError(
            f"`{name}.{kind}` must be {rule}", got=bounds, expected=wanted, fix="mend the bounds"
        )

    if not isinstance(bounds, list) or len(bounds) != wanted.count(",") + 1:
        raise refuse("a list of numbers")
    numbers = [_number(bound) for bound in bounds]
    if any(number is None for number in numbers):
        raise refuse("a list of finite numbers")
    low, high, *step = (number for number in numbers if number is not None)
    if not low < high:
        raise refuse("a range with low < high")
    if kind == "loguniform" and low <= 0:
        raise refuse("a range with low > 0")
    if kind == "randint" and (low % 1 or high % 1):
        raise refuse("a range of whole numbers")
    if not math.isfinite(high - low):
        raise refuse("a range that a number can measure")
    if step and not _is_multiple(high - low, step[0]):
        raise refuse("a range that is a multiple of its step > 0")
    if kind == "randint":
        low, high = int(low), int(high)
    return Range(kind, low, high, step[0] if step else None)


def _is_multiple(width: float, step: float) -> bool:
    if step <= 0 or not math.isfinite(width / step):
        return False
    return abs(width / step - round(width / step)) <= 1e-6


def _number(value: Any) -> float | None:
    """Return a finite number, `1e-4` included, which YAML 1.1 takes for a text."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if abs(number) < float("inf") else None


def _parse_options(kind: Any, options: Any, name: str) -> Options:
    if not isinstance(options, list) or not options:
        raise ConfigError(
            f"`{name}.{kind}` must be a list of options",
            got=options,
            expected=f"{kind}: [FIRST, SECOND, ...]",
            fix="give at least one",
        )
    labels = tuple(label(option) for option in options)
    if len(set(labels)) < len(labels):
        raise ConfigError(
            f"the options of `{name}.{kind}` must differ",
            got=", ".join(map(str, labels)),
            fix="remove the repeats",
        )
    trees = tuple(_parse(option, f"{name}[{index}]") for index, option in enumerate(options))
    return Options(kind, trees, labels)
