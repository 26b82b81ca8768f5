"""The engine on Ray: stage actors, a coordinator actor, and the trainer that starts them."""

from actors.trainer import LayerParallelTrainer, RunStopped

__all__ = ["LayerParallelTrainer", "RunStopped"]
