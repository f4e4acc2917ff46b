"""What compiled code and captured graphs read: row numbers or transitions of a block, in memory that never moves."""

from typing import Any

import torch
from torch import Tensor

from gems_ray.data.sampler import Sampler

ALIGNMENT = 64  # bytes, of every column in the buffer of a block


class BlockInputs:
    """The rows of a block of updates.

    Where the transitions lie on the device, only row numbers come from the host. Otherwise the rows of the whole block
    are gathered there. Either way one buffer of pinned memory is used again and again, and one copy is made of it,
    for which the host does not wait.

    Args:
        sampler: whose rows are drawn.
        batch_size: B.
        length: of the longest block, in updates.
    """

    def __init__(self, sampler: Sampler[Any], batch_size: int, length: int) -> None:
        self._sampler, self._batch_size = sampler, batch_size
        if sampler.on_device:
            columns = {"rows": torch.zeros(batch_size, dtype=torch.int64)}
        else:
            columns = sampler.gather(torch.zeros(batch_size, dtype=torch.int64))
        starts, size = [], 0
        for column in columns.values():
            starts.append(size)
            size += -(-length * column.nbytes // ALIGNMENT) * ALIGNMENT
        cuda = sampler.device.type == "cuda"
        self._buffer = torch.zeros(size, dtype=torch.uint8, device=sampler.device)
        self._staging = torch.zeros(size, dtype=torch.uint8, pin_memory=True) if cuda else self._buffer
        self._copied = torch.cuda.Event() if cuda else None

        def views(flat: Tensor) -> dict[str, Tensor]:
            return {
                name: flat[start : start + length * column.nbytes].view(column.dtype).view(length, *column.shape)
                for (name, column), start in zip(columns.items(), starts, strict=True)
            }

        self._columns, self._staged = views(self._buffer), views(self._staging)

    def fill(self, count: int) -> None:
        """Draws the rows of the next `count` updates."""
        if self._copied is not None:
            self._copied.synchronize()  # the copy of the block before: it reads what is overwritten now
        for index in range(count):
            rows = self._sampler.draw_on_host(self._batch_size)
            drawn = {"rows": rows} if self._sampler.on_device else self._sampler.gather(rows)
            for name, column in drawn.items():
                self._staged[name][index].copy_(column)
        if self._copied is not None:
            self._buffer.copy_(self._staging, non_blocking=True)
            self._copied.record()

    def batch(self, index: int | Tensor) -> Any:
        """The batch of an update of the block, by its number or by a tensor (1,) that holds it."""
        columns = {
            name: column[index] if isinstance(index, int) else column.index_select(0, index)[0]
            for name, column in self._columns.items()
        }
        return self._sampler.rows(columns["rows"]) if self._sampler.on_device else self._sampler.assemble(columns)
