"""From an experiment to its run folder: sources, cells, plan; the same for one process and for a cluster."""
