"""Files that a job may name: inside the folders that the service allows, and nowhere else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from laminar.config import Config, ImageFolderConfig
from laminar.errors import ConfigError

_MOST_CHARACTERS = 4096
_MOST_EPOCHS = 100_000
_MOST_SYNTHETIC = 10**7


def named_paths(config: Config) -> list[tuple[str, str]]:
    """Return key and value of everything in a configuration that names a file or folder.

    Those within another, the splits of a data set, are for `check_splits`.
    """
    found = []
    for key, section, field in (
        ("data.root", config.data, "root"),
        ("data.cache_dir", config.data, "cache_dir"),
        ("model.weights", config.model, "weights"),
    ):
        value = getattr(section, field, None)
        if value is not None:
            found.append((key, value))
    return found


def confined(config: Config, roots: Sequence[Path]) -> Config:
    """Return the configuration of a job with its paths resolved, or say why it cannot be one.

    A relative path is one within the first root. Links are followed before the comparison.

    Args:
        config: As it was submitted.
        roots: Folders that jobs may read from.

    Raises:
        ConfigError: It names a file elsewhere, needs Python code, or is beyond all measure.
    """
    check_is_data(config)
    data, model = config.data, config.model
    for key, folder in (
        ("data.cache_dir", getattr(data, "cache_dir", None)),
        ("stored.scratch_dir", config.stored.scratch_dir),
    ):
        if folder is not None:
            raise left_out(key, folder)
    if hasattr(data, "root"):
        root = resolve("data.root", data.root, roots)
        data = data.model_copy(update={"root": str(root)})
        config = config.model_copy(update={"data": data})
        check_splits(config)
    if model.weights is not None:
        model = model.model_copy(
            update={"weights": str(resolve("model.weights", model.weights, roots))}
        )
    return config.model_copy(update={"data": data, "model": model})


def check_splits(config: Config) -> None:
    """Refuse a folder of images that is outside of its data set, links followed.

    Raises:
        ConfigError: One is.
    """
    if isinstance(config.data, ImageFolderConfig):
        root = Path(config.data.root)
        for key in ("train_split", "test_split"):
            resolve(f"data.{key}", str(root / getattr(config.data, key)), [root])


def left_out(key: str, value: object) -> ConfigError:
    """Return the refusal of a folder that is the cluster's to choose."""
    return ConfigError(
        f"{key} must be left out in a job",
        got=_shown(str(value)),
        fix="leave it out; the cluster's own is used",
    )


def check_is_data(config: Config) -> None:
    """Refuse what takes Python code, or is beyond all measure.

    Raises:
        ConfigError: It does.
    """
    for key, name in (
        ("model.name", config.model.name),
        ("data.name", config.data.name),
        ("loss.name", config.loss.name),
    ):
        if name == "custom":
            raise ConfigError(
                f"{key} must not be custom in a job, which is data and never code",
                got=name,
                fix="train with LayerParallelTrainer in Python, or choose another",
            )
    for key, value, most in (
        ("epochs", config.epochs, _MOST_EPOCHS),
        ("data.num_train", getattr(config.data, "num_train", 0), _MOST_SYNTHETIC),
        ("data.num_test", getattr(config.data, "num_test", 0), _MOST_SYNTHETIC),
    ):
        if value > most:
            raise ConfigError(f"{key} must be <= {most} in a job", got=value, fix="lower it")


def resolve(key: str, value: str, roots: Sequence[Path]) -> Path:
    """Return a path inside one of the roots, links followed.

    Raises:
        ConfigError: It leads elsewhere.
    """

    def refuse(got: object) -> ConfigError:
        allowed = ", ".join(str(root) for root in roots) or "none: see `laminar serve --data-root`"
        return ConfigError(
            f"{key} must be inside a folder that the service allows",
            got=got,
            expected=f"one under {allowed}",
            fix="move the files there, or name others",
        )

    if not 0 < len(value) <= _MOST_CHARACTERS or "\0" in value or not roots:
        raise refuse(_shown(value))
    try:
        # Not expanded: `~` would be the home of whoever runs the service.
        path = (roots[0] / value).resolve()
    except (OSError, RuntimeError, ValueError):
        raise refuse(_shown(value)) from None
    if not any(path.is_relative_to(root.resolve()) for root in roots):
        raise refuse(_shown(value))
    return path


def _shown(value: str) -> str:
    """Return what a user sent, fit to be printed."""
    return repr(value[:200])
