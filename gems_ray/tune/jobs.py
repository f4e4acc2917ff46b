"""Runs as jobs of a Ray cluster: the driver lives there, and a client that goes away changes nothing."""

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import requests
from aiohttp import ClientError
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient
from ray.runtime_env import RuntimeEnv

import gems_ray
from gems_ray.errors import ResourceError
from gems_ray.tune.cluster import credentials, set_environment

EXAMPLE = "http://127.0.0.1:8265"
RUN = "gems_ray"  # metadata of our jobs: the command
LONGEST_SAVING_S = 60  # between SIGTERM and SIGKILL when a job is stopped
NOT_READY, LONGEST_START_S = "No available agent", 60  # what a cluster says that has just been started
POLL_S = 0.5


@dataclass(frozen=True, slots=True)
class SubmittedRun:
    """A run that was given to a cluster.

    Args:
        name: of the job.
        command: words of the command line.
        status: waiting, running, finished, failed or stopped.
        code: exit code; None while it runs, and where there is none.
        begin: of the job.
        message: what Ray says of a job that it could not run.
    """

    name: str
    command: str
    status: str
    code: int | None
    begin: datetime | None
    message: str

    def __str__(self) -> str:
        """How far it has come, on a line."""
        code = "" if self.code is None else f", exit code {self.code}"
        reason = f" ({self.message.splitlines()[0]})" if self.code is None and self.message else ""
        return f"{self.name}: {self.status}{code}{reason}."


STATUS = {
    JobStatus.PENDING: "waiting",
    JobStatus.RUNNING: "running",
    JobStatus.SUCCEEDED: "finished",
    JobStatus.FAILED: "failed",
    JobStatus.STOPPED: "stopped",
}
ENDED = ("finished", "failed", "stopped")


class Jobs:
    """The submitted runs of a cluster.

    Args:
        address: URL of the dashboard; None for what RAY_API_SERVER_ADDRESS says, or the Ray of this machine.
    Raises:
        ResourceError: no cluster answers there, or not with this token.
    """

    def __init__(self, address: str | None = None) -> None:
        set_environment()
        for handler in logging.getLogger("ray").handlers:  # how packages travel is no news
            handler.setLevel(logging.ERROR)
        self._place = f"--address {address}" if address else "the Ray of this machine"
        if address:
            url = address if "://" in address else f"http://{address}"
            if not url.startswith(("http://", "https://")):
                raise ResourceError(f"{self._place}: expected the URL of a dashboard, such as {EXAMPLE}.")
            os.environ["RAY_API_SERVER_ADDRESS"] = url  # Ray lets this variable win over every other word
        with self._answers():
            self._client = JobSubmissionClient(address)

    def submit(self, name: str, entry: str, command: str, folder: Path, environment: Mapping[str, str]) -> None:
        """Starts a job.

        Args:
            name: a new one.
            entry: what the job's shell runs.
            command: words of the command line, for those who look at the job.
            folder: whose content is the job's working directory.
            environment: variables of the job, beside the credentials of this process.
        """
        variables = {
            **credentials(),
            **environment,
            "RAY_AUTH_MODE": "token",
            "RAY_JOB_STOP_WAIT_TIME_S": str(LONGEST_SAVING_S),
            "RAY_OVERRIDE_JOB_RUNTIME_ENV": "1",  # the run sets variables of its own, some of them again
            "PYTHONUNBUFFERED": "1",
        }
        package = str(Path(gems_ray.__file__).parent)
        surroundings = RuntimeEnv(
            working_dir=str(folder), py_modules=[package], excludes=["__pycache__"], env_vars=variables
        )
        deadline = time.monotonic() + LONGEST_START_S
        with self._answers():
            while True:
                try:
                    self._client.submit_job(
                        entrypoint=entry, submission_id=name, runtime_env=surroundings, metadata={RUN: command}
                    )
                    return
                except RuntimeError as error:
                    if NOT_READY not in str(error) or time.monotonic() > deadline:
                        raise
                time.sleep(POLL_S)

    def runs(self) -> list[SubmittedRun]:
        """All runs that the cluster remembers, the latest first."""
        with self._answers():
            jobs = [job for job in self._client.list_jobs() if job.submission_id and RUN in (job.metadata or {})]
        return [self._run(job) for job in sorted(jobs, key=lambda job: job.start_time or 0, reverse=True)]

    def run(self, name: str) -> SubmittedRun:
        """One run.

        Raises:
            ResourceError: there is none of this name.
        """
        runs = {run.name: run for run in self.runs()}
        if name not in runs:
            known = ", ".join(runs) or "none"
            raise ResourceError(f"no submitted run is called `{name}` here. Known: {known}.")
        return runs[name]

    def log(self, name: str) -> str:
        """All that a run has printed so far."""
        self.run(name)
        with self._answers():
            return str(self._client.get_job_logs(name))

    def follow(self, name: str, write: Callable[[str], None]) -> SubmittedRun:
        """Hands on what a run prints until it ends.

        Args:
            name: of the run.
            write: takes the text, line ends included.
        Raises:
            ResourceError: the connection was lost; the run goes on.
        """
        self.run(name)

        async def hand_on() -> None:
            async for text in self._client.tail_job_logs(name):
                write(text)

        while (run := self.run(name)).status == "waiting":
            time.sleep(POLL_S)
        if run.status == "running":
            with self._answers():
                asyncio.run(hand_on())
        else:
            write(self.log(name))
        while (run := self.run(name)).status not in ENDED:
            time.sleep(POLL_S)
        return run

    def stop(self, name: str) -> SubmittedRun:
        """Lets a run save its cells and end, and waits for that."""
        if self.run(name).status not in ENDED:
            with self._answers():
                self._client.stop_job(name)
        while (run := self.run(name)).status not in ENDED:
            time.sleep(POLL_S)
        return run

    @staticmethod
    def _run(job: JobDetails) -> SubmittedRun:
        begin = datetime.fromtimestamp(job.start_time / 1000) if job.start_time else None
        status, message = STATUS[job.status], (job.message or "").strip()
        return SubmittedRun(job.submission_id, job.metadata[RUN], status, job.driver_exit_code, begin, message)

    @contextlib.contextmanager
    def _answers(self) -> Iterator[None]:
        """Turns what Ray's client raises into one line."""
        try:
            yield
        except AuthenticationError:
            raise ResourceError(
                f"{self._place}: the cluster refuses the token of this machine. Put the cluster's token into "
                "~/.ray/auth_token, or into the variable RAY_AUTH_TOKEN."
            ) from None
        except (ConnectionError, requests.RequestException, ClientError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise ResourceError(
                f"{self._place}: no cluster answers there ({reason.rstrip('.')}). Expected the URL of a dashboard, "
                f"such as {EXAMPLE}."
            ) from None
        except (RuntimeError, ValueError) as error:
            raise ResourceError(f"{self._place}: {' '.join(str(error).split())}") from None
