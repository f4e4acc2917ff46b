"""What a run tells whoever watches it."""

import logging

from gems_ray.experiments.progress import CellProgress
from gems_ray.experiments.run_folder import RunFolder

LOGGER = logging.getLogger("gems_ray")


class RunListener:
    """Hears what a run does while it goes on. This one logs the lines; a subclass may show more."""

    def on_line(self, line: str) -> None:
        """Something that the user should know."""
        LOGGER.info(line)

    def on_episodes(self, collected: int, planned: int) -> None:
        """Episodes of a dataset have been added.

        Args:
            collected: how many, since the last call.
            planned: how many the dataset will have.
        """

    def on_training(self, run: RunFolder) -> None:
        """The first cells of a run are about to be trained."""

    def on_cell(self, change: CellProgress) -> None:
        """A cell has begun, has been evaluated, has ended, or was set back."""
