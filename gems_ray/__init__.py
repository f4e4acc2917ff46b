"""Offline reinforcement learning for slate recommendation, from simulator to result table."""

__version__ = "0.1.0"
