"""Everything that takes gradient steps: one loop, and the objectives it trains."""

from .training import train

__all__ = ["train"]
