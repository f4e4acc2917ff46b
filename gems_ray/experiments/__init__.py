"""Experiments as data: specifications, cells, run folders. Nothing here needs ray or torch."""
