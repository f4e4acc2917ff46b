"""Gymnasium environments over simulator and world, and whole episodes played in them."""
