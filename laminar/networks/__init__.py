"""The networks, each a list of named blocks."""

from laminar.networks.registry import build_blocks, network, num_blocks

__all__ = ["build_blocks", "network", "num_blocks"]
