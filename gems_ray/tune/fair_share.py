"""How several runs share a cluster: every run may use its part of the places for cells, and what others leave."""

import json
import math
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

import ray
from ray.exceptions import RayError
from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_get, _internal_kv_list, _internal_kv_put

from gems_ray.experiments.spec import Resources
from gems_ray.tune.cluster import nodes

KEYS = "gems_ray/runs/"  # in the key-value store of the cluster's head, one for each run at work
ASK_EVERY_S = 5.0
GONE_AFTER_S = 60.0  # without a word a run is dead
TURN_S = 300.0  # after which a place that cannot be divided goes to the next run; longer than a cell takes to start


@dataclass(frozen=True, slots=True)
class Demand:
    """What a run could use at this moment.

    Args:
        cells: that it would train at the same time.
        places: cells of its size that the whole cluster holds.
    """

    cells: int
    places: int


def shares(demands: Mapping[str, Demand], turn: int = 0) -> dict[str, int]:
    """How many cells each run may train: places are given one by one, always to the run with the smallest part so far.

    So nobody gets more than another one who wants more (max-min fairness), and no place stays empty that is wanted.

    Args:
        demands: by run.
        turn: number that grows with time; among runs with equal parts the first one changes with it.
    """
    order = sorted(demands)
    start = turn % len(order) if order else 0
    order = order[start:] + order[:start]
    given, left = dict.fromkeys(demands, 0), 1.0  # of the cluster

    def part(run: str) -> float:
        return given[run] / demands[run].places

    waiting = [run for run in order if demands[run].cells and demands[run].places]
    while waiting:
        run = min(waiting, key=part)
        if 1 / demands[run].places > left + 1e-9:
            waiting.remove(run)
            continue
        given[run] += 1
        left -= 1 / demands[run].places
        if given[run] == demands[run].cells:
            waiting.remove(run)
    return given


class FairShare:
    """The places of a run on a cluster that it may share with other runs.

    Every run writes into the cluster's key-value store what it could use, reads what the others have written, and comes
    to the same division as they do; there is no process that could be lost.

    Args:
        resources: of one cell.
    """

    def __init__(self, resources: Resources) -> None:
        self._resources = resources
        self._key = KEYS + ray.get_runtime_context().get_job_id()
        self._asked, self._allowed = -math.inf, 0

    def allowed(self, cells: int) -> int:
        """How many cells may be at work now.

        Args:
            cells: of this run that have not ended, or will still be added.
        """
        if time.monotonic() - self._asked > ASK_EVERY_S:
            self._asked, now = time.monotonic(), time.time()
            with suppress(RayError):  # the head is busy, or starts again: the former division stays
                self._allowed = self._divide(cells, now)
        return self._allowed

    def leave(self) -> None:
        """Tells the other runs that this one has ended."""
        with suppress(RayError):
            _internal_kv_del(self._key)

    def _divide(self, cells: int, now: float) -> int:
        demand = Demand(cells, sum(self._resources.cells_on(*node) for node in nodes()))
        _internal_kv_put(self._key, json.dumps([now, demand.cells, demand.places]))
        if not demand.places:  # all nodes were lost, or none has been started yet
            return 1
        if others := self._others(now):
            return shares({**others, self._key: demand}, int(now / TURN_S))[self._key]
        return demand.places + demand.places // 2 + 1  # a cluster that grows by itself looks at the cells that wait

    def _others(self, now: float) -> dict[str, Demand]:
        found = {}
        for key in (key.decode() for key in _internal_kv_list(KEYS)):
            written = _internal_kv_get(key) if key != self._key else None
            with suppress(ValueError, TypeError):  # written by another version
                moment, cells, places = json.loads(written or "[0, 0, 0]")
                if now - moment < GONE_AFTER_S:
                    found[key] = Demand(int(cells), int(places))
        return found
