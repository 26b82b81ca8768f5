"""Weights to start from: a file of tensors by name, as torchvision and `laminar export` write."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from laminar.blocks import BlockSequence
from laminar.config.architecture import parse_name
from laminar.errors import CheckpointError, ConfigError
from laminar.plan import Plan

TORCH_SUFFIXES = (".pth", ".pt")

_UNREADABLE = (
    *(SafetensorError, zipfile.BadZipFile, OSError, EOFError),
    *(RuntimeError, AttributeError, LookupError, TypeError, ValueError),
)
"""What torch and safetensors raise for a file that is damaged or holds something else."""

Wanted = Callable[[str], bool]


def check_weights(plan: Plan) -> tuple[str, ...]:
    """Compare `model.weights`, if given, with the network of a plan; no value is read.

    Returns:
        Names of the classifier's tensors that start fresh because the file's are of another
        number of classes; mostly none.

    Raises:
        ConfigError: The file is of no known kind or cannot be opened.
        CheckpointError: It holds something else than this network's tensors.
    """
    path = plan.config.model.weights
    if path is None:
        return ()
    module = plan.build_stage_module(0, plan.bounds[-1], device="meta")
    found = read_weights(Path(path), device="meta")
    network = dict(module.public_tensors())
    unknown = sorted(found.keys() - network.keys())
    if unknown:
        raise _unfit(plan, f"{unknown[0]}, which it does not have{_more(unknown)}")
    return _match(found, network, plan)


def notices(plan: Plan) -> list[str]:
    """Check `model.weights`; return what the user of a new run should know of its network.

    Raises:
        ConfigError: As `check_weights`.
        CheckpointError: As `check_weights`.
    """
    found, model = [], plan.config.model
    fresh = check_weights(plan)
    if fresh:
        found.append(
            f"{', '.join(fresh)} start fresh: {model.weights} is for another number of classes "
            f"than {plan.problem.num_classes}"
        )
    filters = sorted(plan.filters.items())
    filtered = [str(b) for b, f in filters if not f.during("evaluation").is_identity]
    if filtered and (model.weights or parse_name(model.name).family == "torchvision"):
        found.append(
            f"{model.name} with filters before blocks {', '.join(filtered)} is another function "
            "than the published network, whose weights will not give these outputs; `filters: "
            "{pool: 1, cast: fp32}` would keep it"
        )
    return found


@torch.no_grad()
def load_weights(module: BlockSequence, plan: Plan) -> None:
    """Copy `model.weights`, if given, into blocks of the network; the classifier if it fits.

    Args:
        module: Freshly built; any blocks of the network of `plan`.
        plan: Checked by `check_weights`.

    Raises:
        ConfigError: As `check_weights`, for a file that has changed since.
        CheckpointError: As `check_weights`.
    """
    path = plan.config.model.weights
    if path is None:
        return
    targets = dict(module.public_tensors())
    found = read_weights(Path(path), wanted=targets.__contains__)
    fresh = _match(found, targets, plan)
    for name, target in targets.items():
        if name in found and name not in fresh:
            target.copy_(found[name])


def read_weights(
    path: Path, *, device: str = "cpu", wanted: Wanted = lambda name: True
) -> dict[str, Tensor]:
    """Read tensors by name; nothing else in the file is executed or unpickled.

    A torch file may hold the state dict itself or have it under `state_dict`, and its names may
    begin with `module.`, as those of DataParallel do.

    Args:
        path: A safetensors file, or one of `torch.save`.
        device: `meta` reads names, shapes and types only.
        wanted: Which names to return.

    Raises:
        ConfigError: Another suffix, or the file cannot be opened.
        CheckpointError: Damaged, or it holds more than tensors.
    """
    if path.suffix != ".safetensors" and path.suffix not in TORCH_SUFFIXES:
        raise ConfigError(
            f"model.weights must be a .safetensors, {' or '.join(TORCH_SUFFIXES)} file",
            got=path,
            fix="rename it if it is one",
        )
    if not path.is_file():
        raise ConfigError("model.weights must be a file", got=path, fix="mend the path")
    try:
        if path.suffix == ".safetensors":
            return _read_safetensors(path, device, wanted)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickles that are refused anyway
            content = torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:
        # Not torch's own text, which advises to unpickle whatever it is.
        raise _not_tensors(path, "other objects, or damaged") from error
    except PermissionError as error:
        raise ConfigError(
            "model.weights must be readable", got=error, fix="mend its mode"
        ) from error
    except _UNREADABLE as error:
        raise _not_tensors(path, str(error).partition("\n")[0] or type(error).__name__) from error
    return {name: t for name, t in _state_dict(path, content).items() if wanted(name)}


def _read_safetensors(path: Path, device: str, wanted: Wanted) -> dict[str, Tensor]:
    with safe_open(path, framework="pt") as file:
        names = [name for name in file.keys() if wanted(name)]  # noqa: SIM118 - no mapping
        if device == "meta":
            return {n: torch.empty(file.get_slice(n).get_shape(), device="meta") for n in names}
        return {name: file.get_tensor(name) for name in names}


def _state_dict(path: Path, content: Any) -> dict[str, Tensor]:
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping):
        raise _not_tensors(path, type(content).__name__)
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise _not_tensors(path, f"{type(tensor).__name__} under {name!r}")
    if content and all(name.startswith("module.") for name in content):
        return {name.removeprefix("module."): tensor for name, tensor in content.items()}
    return dict(content)


def _match(
    found: Mapping[str, Tensor], network: Mapping[str, Tensor], plan: Plan
) -> tuple[str, ...]:
    """Return the names that start fresh, or say what does not fit."""
    num_classes = plan.problem.num_classes
    last = plan.bounds[-1]
    head = dict(plan.build_stage_module(last - 1, last, device="meta").public_tensors())
    fresh = []
    for name, tensor in network.items():
        if name not in found:
            # Files from before torch 0.4.1 do not count batches.
            if name.endswith("num_batches_tracked"):
                continue
            raise _unfit(plan, f"nothing called {name}")
        shape, wanted = tuple(found[name].shape), tuple(tensor.shape)
        if shape == wanted:
            continue
        is_classifier = name in head and wanted[:1] == (num_classes,)
        if not is_classifier or shape[1:] != wanted[1:] or len(shape) != len(wanted):
            raise _unfit(plan, f"{name} of shape {shape}", f"shape {wanted}")
        fresh.append(name)
    return tuple(fresh)


def _unfit(plan: Plan, got: str, expected: str | None = None) -> CheckpointError:
    return CheckpointError(
        f"model.weights must hold the tensors of {plan.config.model.name}",
        got=f"{got} in {plan.config.model.weights}",
        expected=expected,
        fix="set model.name, width and norm, and the images' channels, as they were in training",
    )


def _more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def _not_tensors(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        "model.weights must hold tensors by name and nothing else",
        got=f"{path}: {reason}",
        fix="write it with torch.save(model.state_dict(), FILE), or as safetensors",
    )
