"""Layer-parallel training of deep residual networks: the algorithm in plain torch, without Ray."""

__version__ = "0.1.0"
