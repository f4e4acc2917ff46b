"""Arguments and options that several commands have."""

from typing import Annotated

import typer

Storage = Annotated[
    str,
    typer.Option(help="Folder of the run folders; or a URI for the checkpoints, s3://bucket/runs, beside runs/NAME."),
]
Name = Annotated[str | None, typer.Option(help="Name of the run folder [default: name of the file].")]
Address = Annotated[str | None, typer.Option(help="Ray cluster to join, in place of this machine.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check and list everything, run nothing (as `plan`).")]
StudyStorage = Annotated[
    str | None,
    typer.Option(
        "--study-storage",
        help="Database of the study, postgresql://user:password@host/database [default: study.db in the run folder].",
    ),
]
