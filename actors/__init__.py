"""The engine on Ray: stage actors, a coordinator actor, and the trainer that starts them."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from actors.trainer import LayerParallelTrainer, RunStopped

__all__ = ["LayerParallelTrainer", "RunStopped"]


def __getattr__(name: str) -> Any:
    """Import the trainer when it is first asked for.

    Every worker process imports this package to find its actor's class; none needs Ray Train,
    which takes two seconds to import.
    """
    if name in __all__:
        from actors import trainer

        return getattr(trainer, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
