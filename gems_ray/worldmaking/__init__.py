"""Worlds and datasets from nothing: training of rankers and behaviour agents, collection."""
