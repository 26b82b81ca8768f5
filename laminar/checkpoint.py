"""Checkpoints on disk: safetensors written per stage, published by one atomic manifest.

A folder without `manifest.json` is no checkpoint. Tensors go by the network's own names, so a
checkpoint does not depend on the number of stages; nothing is ever unpickled.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from laminar import __version__
from laminar.config_file import validate_config
from laminar.errors import CheckpointError, FactoryError
from laminar.factories import NO_FACTORIES, Factories
from laminar.mirror import Mirror
from laminar.plan import Plan
from laminar.problem import Problem
from laminar.run_directory import MANIFEST

if TYPE_CHECKING:
    from torch import Tensor

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class SavedPart:
    """One file of a checkpoint, as its writer reports it."""

    name: str
    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint holds and where in the run it was taken."""

    path: Path
    epoch: int
    """Epochs finished."""
    plan: Plan
    parts: tuple[SavedPart, ...]
    data: dict[str, Any]
    """What the evaluation needs to know of the training data: mean and std per channel."""


def write_part(folder: Path, name: str, tensors: Mapping[str, Tensor]) -> SavedPart:
    """Write the tensors of one stage into a checkpoint that is not published yet."""
    from safetensors.torch import save_file  # and torch, which who publishes can do without

    with _writable(folder / name) as path:
        save_file(dict(tensors), path)
        return SavedPart(name, path.stat().st_size, _sha256(path))


@contextlib.contextmanager
def _writable(path: Path) -> Iterator[Path]:
    """Yield where to write a part, which will be at `path` after the block, here or in a store."""
    mirror = Mirror.of(path)
    if mirror is None:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield path
        return
    with tempfile.TemporaryDirectory() as scratch:
        yield (written := Path(scratch) / path.name)
        mirror.upload(written, path)


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[Path]:
    """Yield where a part can be read within the block, fetched if it is in a store."""
    mirror = Mirror.of(path)
    if mirror is None:
        yield path
        return
    with tempfile.TemporaryDirectory() as scratch:
        fetched = Path(scratch) / path.name
        with contextlib.suppress(FileNotFoundError):
            mirror.download(path, fetched)
        yield fetched


def publish(
    folder: Path, *, epoch: int, plan: Plan, parts: Iterable[SavedPart], data: dict[str, Any]
) -> None:
    """Make the written parts a checkpoint, all at once: the manifest appears whole or not."""
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "laminar_version": __version__,
        "epoch": epoch,
        "config": plan.config.model_dump(mode="json"),
        "problem": asdict(plan.problem),
        "filters": {str(b): f.model_dump() for b, f in plan.filter_settings.items()},
        "data": data,
        "parts": [asdict(part) for part in parts],
    }
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{MANIFEST}"
    with temporary.open("w") as file:
        json.dump(manifest, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(folder / MANIFEST)


def list_checkpoints(root: Path) -> list[Path]:
    """Return the published checkpoints of a run, oldest first."""
    found = [path.parent for path in root.glob(f"*/{MANIFEST}")]
    # By the epoch, which has a digit more from 10,000 on.
    return sorted(found, key=lambda path: (len(path.name), path.name))


def find_checkpoint(run: Path, name: str | None = None) -> Path:
    """Return a run's newest checkpoint, or the one of a name.

    Raises:
        CheckpointError: There is none.
    """
    found = list_checkpoints(run / "checkpoints")
    wanted = [path for path in found if name is None or path.name == name]
    if not wanted:
        raise CheckpointError(
            f"the run must hold {'a checkpoint' if name is None else f'the checkpoint {name}'}",
            got=", ".join(path.name for path in found) or f"none under {run}",
            fix="name the folder that `laminar train` printed; one is written after each epoch",
        )
    return wanted[-1]


def prune(root: Path, keep: int | None) -> None:
    """Delete all but the newest `keep` checkpoints, manifest first; None keeps all.

    In a mirror none while the newest is not in the store, where the next attempt looks for it.
    """
    found, mirror = list_checkpoints(root), Mirror.of(root)
    if keep is None or not found:
        return
    with contextlib.suppress(OSError) if mirror else contextlib.nullcontext():
        if mirror is not None and not mirror.has(found[-1] / MANIFEST):
            return
        for folder in found[:-keep]:
            (folder / MANIFEST).unlink()  # here first: what is gone here is not copied any more
            shutil.rmtree(folder, ignore_errors=True)
            if mirror is not None:
                mirror.remove(folder)


def read_manifest(
    folder: Path, factories: Factories = NO_FACTORIES, *, plan: Plan | None = None
) -> Manifest:
    """Read and check a checkpoint's manifest.

    Args:
        folder: The checkpoint.
        factories: What the user brought to the run in Python, which no file holds.
        plan: The run's, where it is known; None makes it from the manifest.

    Raises:
        CheckpointError: No manifest, one of another schema, or one that cannot be read.
        FactoryError: A factory is missing.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise CheckpointError(
            f"a checkpoint must contain {MANIFEST}",
            got=f"none in {folder}",
            fix="name a folder under RUN/checkpoints",
        )
    try:
        content = json.loads(path.read_text())
        version = content["schema_version"]
        if version != SCHEMA_VERSION:
            raise CheckpointError(
                "the checkpoint's schema_version must be one this Laminar reads",
                got=version,
                expected=SCHEMA_VERSION,
                fix=f"use laminar {content.get('laminar_version')}, which wrote it",
            )
        plan = plan or _plan_of(content, factories)
        parts = tuple(SavedPart(**part) for part in content["parts"])
        data = {name: [float(v) for v in content["data"][name]] for name in ("mean", "std")}
        return Manifest(folder, int(content["epoch"]), plan, parts, data)
    except (CheckpointError, FactoryError):
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise _damaged(path, error) from error


def _plan_of(content: dict[str, Any], factories: Factories) -> Plan:
    from laminar.planning import make_plan

    problem = content["problem"]
    problem["image_shape"] = tuple(problem["image_shape"])
    problem["class_names"] = tuple(problem.get("class_names", ()))
    return make_plan(validate_config(content["config"]), Problem(**problem), factories)


def load_tensors(manifest: Manifest, prefix: str | tuple[str, ...] = "") -> dict[str, Tensor]:
    """Read a checkpoint's tensors: `load_parts` of a manifest from `read_manifest`."""
    return load_parts(manifest.path, manifest.parts, prefix)


def load_parts(
    folder: Path, parts: Iterable[SavedPart], prefix: str | tuple[str, ...] = ""
) -> dict[str, Tensor]:
    """Read a checkpoint's tensors, after comparing each file with its recorded checksum.

    Args:
        folder: The checkpoint; its manifest need not be on this machine.
        parts: What the manifest says.
        prefix: Only names that start with this, or with one of these.

    Raises:
        CheckpointError: A file is missing, shortened or altered.
    """
    tensors: dict[str, Tensor] = {}
    for part in parts:
        path = folder / part.name
        with _readable(path) as found:
            if not found.is_file() or found.stat().st_size != part.num_bytes:
                raise _damaged(path, "missing or of another size")
            if _sha256(found) != part.sha256:
                raise _damaged(path, "its checksum differs")
            try:
                with safe_open(found, framework="pt") as file:
                    tensors |= {k: file.get_tensor(k) for k in file.keys() if k.startswith(prefix)}  # noqa: SIM118
            except SafetensorError as error:
                raise _damaged(path, error) from error
    return tensors


def load_weights(manifest: Manifest) -> dict[str, Tensor]:
    """Read parameters and buffers by their names in the network, as evaluation takes them.

    With `ema` the parameters are the averaged ones; buffers are those of training.

    Raises:
        CheckpointError: A file is damaged, or not of the network it says.
    """
    tensors = load_tensors(manifest, ("model.", "ema."))
    check_fits(tensors, manifest.plan)
    models = {n: t for n, t in tensors.items() if n.startswith("model.")}
    averages = {n: t for n, t in tensors.items() if n.startswith("ema.")}
    return {n.partition(".")[2]: t for n, t in (models | averages).items()}


def check_fits(tensors: Mapping[str, Tensor], plan: Plan) -> None:
    """Compare names and shapes with the network of a plan.

    Raises:
        CheckpointError: A tensor of the network, or an average of one, is missing or has another
            shape.
    """
    module = plan.build_stage_module(0, plan.bounds[-1], device="meta")
    wanted = {f"model.{name}": tensor for name, tensor in module.public_tensors()}
    if plan.config.ema is not None:
        for key, parameter in module.named_parameters():
            wanted[f"ema.{module.public_name(key)}"] = parameter
    check_shapes(tensors, wanted, plan)


def check_shapes(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor], plan: Plan) -> None:
    """Raise CheckpointError unless every wanted name is there, in the same shape."""
    for name, tensor in wanted.items():
        found = tensors.get(name)
        if found is None or found.shape != tensor.shape:
            raise CheckpointError(
                f"the checkpoint must hold {name} of the network {plan.config.model.name}",
                got="nothing" if found is None else f"shape {tuple(found.shape)}",
                expected=f"shape {tuple(tensor.shape)}",
                fix="use the checkpoint with the configuration it was trained with",
            )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _damaged(path: Path, reason: object) -> CheckpointError:
    return CheckpointError(
        "a checkpoint's files must be as they were written",
        got=f"{path}: {reason}",
        fix="restore the file or use an earlier checkpoint",
    )
