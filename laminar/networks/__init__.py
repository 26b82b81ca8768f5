"""The networks, each a list of named blocks."""

from laminar.networks.registry import block_specs, build_blocks, network, num_blocks

__all__ = ["block_specs", "build_blocks", "network", "num_blocks"]
