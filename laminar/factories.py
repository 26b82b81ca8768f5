"""What a user brings in Python: blocks, data sets, a loss. Functions, so never from a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from laminar.config import Config, DigitsConfig, LossConfig, ModelConfig, OwnDataConfig
from laminar.errors import FactoryError
from laminar.problem import Problem

if TYPE_CHECKING:
    from torch import Tensor, nn

    from laminar.blocks import BlockSpec

CUSTOM = "custom"
"""What the configuration calls a network, data set or loss that Python code makes."""

MakeBlock = Callable[[], "nn.Module"]
MakeBlocks = Callable[[Problem], Mapping[str, MakeBlock]]
MakeData = Callable[[], tuple[Any, Any]]
LossFunction = Callable[["Tensor", "Tensor"], "Tensor"]


@dataclass(frozen=True)
class Factories:
    """A network, data sets and a loss of the user's own; what is None, the configuration says.

    Every stage actor calls them for itself, so they must be picklable and give the same each time.
    """

    blocks: MakeBlocks | None = None
    """From the problem to the network's blocks in order: a function that builds each, by name.

    Only a stage's own blocks are built there, each with a generator of its own. A block maps one
    tensor [B, ...] to another; the last one puts out logits [B, num_classes]."""
    datasets: Mapping[str, MakeData] | None = None
    """For `train` and `test` a function that returns (inputs, targets), N rows each.

    Inputs are indexed by an int64 array and give a tensor or array [B, ...]; targets are int64 [N],
    the class of each row."""
    loss: LossFunction | None = None
    """From logits [b, num_classes] and targets, int64 [b], to the mean loss, a scalar; for training
    and test alike. With mixup, targets in training are fp32 [b, num_classes]."""

    def mark(self, config: Config) -> Config:
        """Return the configuration of a new run, with `custom` for what is given here.

        Raises:
            FactoryError: The configuration chooses another one, or a factory is none.
        """
        self._check_types()
        changes: dict[str, Any] = {}
        if self.blocks is not None:
            plain = ModelConfig(name=CUSTOM, weights=config.model.weights)
            _check_left_out("model", config.model, plain, ModelConfig(weights=plain.weights))
            changes["model"] = plain
        if self.datasets is not None and not isinstance(config.data, OwnDataConfig):
            _check_left_out("data", config.data, DigitsConfig())
            changes["data"] = OwnDataConfig()
        if self.loss is not None:
            _check_left_out("loss", config.loss, LossConfig(), LossConfig(name=CUSTOM))
            changes["loss"] = LossConfig(name=CUSTOM)
        return config.model_copy(update=changes)

    def check(self, config: Config) -> None:
        """Compare with what a configuration calls custom.

        Raises:
            FactoryError: One is missing, or one is given that the run does not use.
        """
        self._check_types()
        for name, given, said in (
            ("blocks", self.blocks, config.model.name),
            ("datasets", self.datasets, config.data.name),
            ("loss", self.loss, config.loss.name),
        ):
            if said == CUSTOM and given is None:
                raise FactoryError(
                    f"a run with {name} of its own must be given them in Python, each time",
                    got=f"no {name}",
                    fix=f"call LayerParallelTrainer(config, {name}=...), its resume(run, "
                    f"{name}=...) or evaluate_run(run, {name}=...)",
                )
            if said != CUSTOM and given is not None:
                raise FactoryError(
                    f"{name} must be left out for a run that has none of its own",
                    got=f"{name} and {said}",
                    fix=f"leave {name} out",
                )

    def specs(self, problem: Problem) -> list[BlockSpec]:
        """Return how to build each block of the network.

        Raises:
            FactoryError: The factory fails, or returns something else than functions by name.
        """
        from laminar.blocks import BlockSpec

        assert self.blocks is not None
        try:
            found = self.blocks(problem)
        except Exception as error:
            raise FactoryError(
                "blocks must return the functions that build the blocks, by name",
                got=describe_error(error),
                fix="mend the factory; it is given a laminar.problem.Problem",
            ) from error
        pairs = found.items() if isinstance(found, Mapping) else ()
        if not pairs or not all(isinstance(name, str) and callable(make) for name, make in pairs):
            raise FactoryError(
                "blocks must return the functions that build the blocks, by name",
                got=f"{found!r}"[:80],
                fix='return {"stem": lambda: Stem(...), ..., "head": lambda: Head(...)}',
            )
        return [BlockSpec(name, partial(_make, name, make)) for name, make in found.items()]

    def _check_types(self) -> None:
        for name, given in (("blocks", self.blocks), ("loss", self.loss)):
            if given is not None and not callable(given):
                raise FactoryError(f"{name} must be a function", got=given, fix="pass the function")
        data = self.datasets
        if data is None:
            return
        splits = {"train", "test"}
        is_fine = isinstance(data, Mapping) and data.keys() == splits
        if not is_fine or not all(callable(make) for make in data.values()):
            raise FactoryError(
                "datasets must hold a function for `train` and one for `test`",
                got=f"{data!r}"[:80],
                fix='pass {"train": load_train, "test": load_test}',
            )


NO_FACTORIES = Factories()


def _make(name: str, make: MakeBlock) -> nn.Module:
    try:
        return make()
    except Exception as error:
        raise FactoryError(
            f"the function that builds the block `{name}` must return it",
            got=describe_error(error),
            fix="mend it; it is called without arguments",
        ) from error


def describe_error(error: BaseException) -> str:
    """Return type and first line of an error that a user's function raised."""
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _check_left_out(name: str, given: object, *allowed: object) -> None:
    if given not in allowed:
        raise FactoryError(
            f"config.{name} must be left out where Python code stands in for it",
            got=f"{given!r}"[:80],
            fix=f"leave config.{name} out, or the argument",
        )
