"""What `import gems_ray` offers. Every function imports what it needs when it is called."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gems_ray.errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from gems_ray.data.report import DatasetReport
    from gems_ray.data.schema import Dataset
    from gems_ray.evaluation.examine import Belonging
    from gems_ray.evaluation.record import Evaluation
    from gems_ray.execution.listener import RunListener
    from gems_ray.execution.plan import Plan
    from gems_ray.execution.run import Backend
    from gems_ray.experiments.run_folder import RunFolder
    from gems_ray.experiments.spec import Experiment
    from gems_ray.policies.base import Policy
    from gems_ray.results.results import Results
    from gems_ray.world.bundle import World

RUNS = Path("runs")


def load_dataset(path: str | Path) -> "Dataset":
    """Reads a dataset of logged transitions and checks it.

    Args:
        path: of an npz file with `observations` (N, 20), `actions` (N, 32), `rewards` (N,), `next_observations`
            (N, 20) and `terminals` (N,); files of `collect` also hold slates, clicks and the world's fingerprint.
    Returns:
        the dataset, N transitions in the order in which they were logged.
    Raises:
        DatasetError: the file is missing, damaged or in another format.
    Example:
        dataset = gems_ray.load_dataset("offline_datasets/diffuse_mix_mixed.npz")
    """
    from gems_ray.data.npz import load_dataset

    return load_dataset(Path(path))


def check_dataset(path: str | Path, world: "str | Path | World | None" = None) -> "DatasetReport":
    """Says what is in a dataset file, whoever wrote it, and what can be done with it.

    Args:
        path: of an npz file, or of a dataset of Minari.
        world: whose action box the actions are compared with: a name, a folder or a world.
    Returns:
        the report; `.lines()` is its text, and `.problems` is empty for a file that can be used.
    Raises:
        DatasetError: the file is missing, damaged, or in no known layout.
        WorldError: there is no such world.
    Example:
        print(*gems_ray.check_dataset("mine.npz").lines(), sep=", ")
    """
    from gems_ray.data.report import inspect_dataset

    return inspect_dataset(Path(path), None if world is None else _world(world).bounds)


def attach_dataset(
    path: str | Path, world: "str | Path | World", *, quality: str | None = None, output: str | Path | None = None
) -> "Belonging":
    """Binds a foreign dataset to the world that it was logged in, after testing that they belong together.

    Args:
        path: of an npz file without metadata; its arrays stay as they are.
        world: a name, a folder or a world.
        quality: what the file calls its behaviour policy; what its name says if not given.
        output: file to write; None for the same file, which is replaced as a whole.
    Returns:
        the figures of the tests; `.lines()` says how sure they are.
    Raises:
        WorldError: the file was not logged in this world.
        DatasetError: the file is damaged, or bound to a world already.
        ConfigError: the quality is no word.
    Example:
        gems_ray.attach_dataset("diffuse_topdown_expert.npz", "worlds/published")
    """
    from gems_ray.data.report import quality_of
    from gems_ray.evaluation.attach import attach_dataset

    path = Path(path)
    chosen = quality_of(path) if quality is None else quality
    if not 0 < len(chosen) <= 200:
        raise ConfigError(f"quality `{chosen[:200]}`: expected a word.")
    return attach_dataset(path, _world(world), chosen, None if output is None else Path(output))


def load_world(name_or_folder: str | Path) -> "World":
    """Opens a world: simulator, ranker, belief encoder and behaviour agents.

    Args:
        name_or_folder: an environment whose world is shipped (`focused_topdown` and the three diffuse ones), or the
            folder of a world of your own.
    Raises:
        WorldError: there is neither, or the bundle is damaged.
    Example:
        world = gems_ray.load_world("diffuse_mix")
    """
    from gems_ray.world.bundle import find_world

    return find_world(str(name_or_folder))


def import_world(
    environment: str,
    gems: str | Path,
    items: str | Path,
    output: str | Path,
    *,
    agent: str | Path | None = None,
    belief: str | Path | None = None,
    bounds: str | Path | None = None,
    sessions: str | Path | None = None,
    episodes: int = 16_000,
    seed: int = 0,
) -> "World":
    """Builds a world from the files of the original GeMS program. Nothing in them is unpickled or run.

    Args:
        environment: in which the ranker was trained, for example diffuse_topdown.
        gems: checkpoint of the ranker.
        items: (1000, 20) float .npy, item vectors of the simulator.
        output: folder of the bundle.
        agent: checkpoint of SAC+GeMS, trained with that ranker.
        belief: without an agent, where the belief encoder comes from: the checkpoint of an agent, or a world.
        bounds: npz with `center` and `scale`, each (32,), of the action box.
        sessions: npz with `slate` and `clicks`, (sessions, 100, 10), that span the action box where there are no
            bounds; without both, the simulator logs 1,000 sessions.
        episodes: that an agent is trained on, where neither agent nor belief is given; an interrupted training goes on.
        seed: of that training, and of sessions that the simulator logs.
    Returns:
        the world; its facts hold the returns of its policies with 1,000 test users.
    Raises:
        WorldError: a file is damaged, or of another kind, size, ranker or environment.
        DatasetError: the file of the bounds or of the sessions is damaged.
        SimulatorError: the item file is damaged or has another shape.
        UnknownNameError: the environment does not exist.
        ConfigError: a number is impossible.
    Example:
        world = gems_ray.import_world("diffuse_topdown", "GeMS.ckpt", "items.npy", "worlds/own", agent="SAC.ckpt")
    """
    from gems_ray.simulator import environment as named_environment
    from gems_ray.worldmaking.agent import AgentTraining
    from gems_ray.worldmaking.imported import OriginalFiles, OwnAgent, import_world

    _check_seed(seed)
    if episodes < 100:
        raise ConfigError(f"episodes {episodes}: expected 100 or more.")
    optional = {"agent": agent, "belief": belief, "bounds": bounds, "sessions": sessions}
    given = {name: Path(path) for name, path in optional.items() if path is not None}
    files = OriginalFiles(Path(gems), Path(items), **given)
    own = OwnAgent(AgentTraining(episodes=episodes), seed)
    return import_world(named_environment(environment), files, Path(output), "gems_ray.import_world", own)


def evaluate(policy: "Policy", world: "World", users: int = 1_000, seed: int | None = None) -> "Evaluation":
    """Plays one episode of a policy with each of many simulated users.

    Args:
        policy: anything that chooses latents or slates; reseeded, so that the same call gives the same numbers.
        world: whose users are asked; its belief makes the observations unless the policy brings an encoder.
        users: how many, 2 or more.
        seed: None for the test users of the result tables; a number, 0 or larger, for other users.
    Returns:
        mean return in clicks per episode with its standard error, and statistics of the slates.
    Raises:
        ConfigError: the number of users or the seed is impossible.
    Example:
        gems_ray.evaluate(policy, world, users=200).return_mean
    """
    from gems_ray.evaluation.returns import EVALUATION_SEED, Evaluator

    if users < 2:
        raise ConfigError(f"users {users}: expected 2 or more, so that there is a standard error.")
    _check_seed(seed)
    purpose, seed = ("test", EVALUATION_SEED) if seed is None else ("own", seed)
    return Evaluator(world, purpose, users, seed).evaluate(policy)


def collect(
    policy: "str | Policy", world: "World", episodes: int, seed: int = 0, quality: str | None = None
) -> "Dataset":
    """Logs episodes of a policy as a dataset.

    Args:
        policy: that chooses latents; or the name of a quality, such as "expert" or "medium_replay", for the world's own
            behaviour policies.
        world: where it plays; the world's belief makes the logged observations, whatever the policy plays on.
        episodes: how many, of 100 steps each.
        seed: the same seed gives the same dataset, and every policy meets the same users.
        quality: what the dataset calls its behaviour policy; the policy's kind if not given. A quality that was named
            as the policy keeps its name.
    Returns:
        a dataset that names the world; `.save(path)` writes it.
    Raises:
        ConfigError: the policy chooses slates, there is no such quality, or a number is impossible.
    Example:
        gems_ray.collect(policy, world, episodes=1000, seed=0).save("mine.npz")
        gems_ray.collect("medium", world, episodes=1000)
    """
    from gems_ray.worldmaking.collect import collect_dataset, collect_policy

    _check_seed(seed)
    if isinstance(policy, str):
        if quality is not None:
            raise ConfigError(f"quality `{quality}`: the policy `{policy}` is a quality already. Leave out quality.")
        return collect_dataset(world, policy, episodes, seed)
    return collect_policy(world, policy, episodes, seed, quality=quality)


def run(
    experiment: "str | Path | Mapping[str, Any] | Experiment",
    folder: str | Path | None = None,
    *,
    in_process: bool = False,
    address: str | None = None,
    storage: str | None = None,
    study_storage: str | None = None,
    listener: "RunListener | None" = None,
) -> "Run":
    """Runs a grid or a search, from wherever its folder stands, until every cell has ended.

    Missing datasets are collected first. Cells that have ended stay as they are, failed ones run again, others go on
    from their checkpoints: the same call continues an interrupted run.

    Args:
        experiment: a YAML file, the same as a dict, or an Experiment.
        folder: of the run; `runs/NAME` if not given, after the experiment's file NAME.yaml.
        in_process: train one cell after the other in this process, in place of Ray; not for searches.
        address: of a Ray cluster; None starts Ray on this machine. Its nodes must see the folder, unless there is a
            `storage`.
        storage: folder or URI below which the checkpoints are kept, such as s3://bucket/runs; None for the run folder,
            or for what a run that goes on began with.
        study_storage: database URL of a search's study; None for SQLite in the folder.
        listener: hears what is done; None logs it to the logger `gems_ray`.
    Returns:
        the run, its tables written. Cells may have failed or be unfinished: `cells()` says which, and why.
    Raises:
        GemsRayError: the experiment, its data, its folder or the machines are not as they must be.
        RunInterrupted: Ctrl-C or SIGTERM came first; every cell is saved.
    Example:
        run = gems_ray.run("tune_configs/demo.yaml", folder="runs/demo")
    """
    from gems_ray.execution.listener import RunListener
    from gems_ray.execution.run import run_experiment

    if in_process and address:
        raise ConfigError(f"address {address}: a run in this process joins no cluster. Leave out one of the two.")
    checked, path = _checked(experiment), _run_path(experiment, folder)
    backend: Backend
    if in_process:
        from gems_ray.execution.in_process import InProcess

        backend = InProcess()
    else:
        from gems_ray.tune.backend import RayBackend

        backend = RayBackend(address)
    run_experiment(checked, path, backend, listener or RunListener(), storage, study_storage)
    return open_run(path)


def plan(
    experiment: "str | Path | Mapping[str, Any] | Experiment",
    folder: str | Path | None = None,
    *,
    address: str | None = None,
    listener: "RunListener | None" = None,
) -> "Plan":
    """Checks an experiment like `run` and estimates its cost, without running it.

    Args:
        experiment: a YAML file, the same as a dict, or an Experiment.
        folder: of the run, as in `run`.
        address: of a Ray cluster; None for this machine.
        listener: told what the experiment asks for and will not get; None logs it to the logger `gems_ray`.
    Returns:
        cells, and what they need: time in seconds, memory and disk in bytes.
    Raises:
        GemsRayError: the experiment, its data, its folder or the machines are not as they must be.
    Example:
        gems_ray.plan("tune_configs/grid.yaml").seconds
    """
    from gems_ray.execution.listener import RunListener
    from gems_ray.execution.plan import plan_experiment, this_machine

    if address is None:
        machines = [this_machine()]
    else:
        from gems_ray.tune.backend import cluster_machines

        machines = cluster_machines(address)
    path = _run_path(experiment, folder)
    return plan_experiment(_checked(experiment), path, machines, address is None, listener or RunListener())


def open_run(folder: str | Path) -> "Run":
    """Opens the folder of a run, finished or not, to read its results. Needs neither Ray nor torch.

    Args:
        folder: of the run; moved and copied ones too.
    Raises:
        RunFolderError: it is not the folder of a run.
    Example:
        gems_ray.open_run("runs/demo").table()
    """
    from gems_ray.experiments.run_folder import RunFolder

    return Run(RunFolder.open(Path(folder)))


def plot(folders: "str | Path | Sequence[str | Path]", name: str = "learning_curves") -> "Figure":
    """Draws a plot of one or many runs. Needs neither Ray nor torch; damaged files are left out.

    Args:
        folders: of the runs.
        name: learning_curves, q_bound, profiles, scores, cloning, diversity; of searches also trials (the expected
            best of n settings), history, importances, slices, contour, parallel, pareto.
    Returns:
        a matplotlib figure; `.savefig(path)` writes it.
    Raises:
        RunFolderError: a folder is not that of a run.
        UnknownNameError: there is no such plot.
    Example:
        gems_ray.plot("runs/demo", "learning_curves").savefig("curves.pdf")
    """
    from gems_ray.errors import UnknownNameError
    from gems_ray.results.plot_names import PlotName
    from gems_ray.results.plots import draw

    if name not in list(PlotName):
        raise UnknownNameError(f"plot `{name}`: there is none of this name. There are: {', '.join(PlotName)}.")
    return draw(_read_results(folders), PlotName(name))


def report(folders: "str | Path | Sequence[str | Path]", output: str | Path) -> Path:
    """Writes what there is to know about runs as one page of HTML that needs no other file and no network.

    Args:
        folders: of the runs; damaged files in them are left out, and the page names them.
        output: path of the page.
    Returns:
        the path.
    Raises:
        RunFolderError: a folder is not that of a run.
    Example:
        gems_ray.report("runs/demo", "demo.html")
    """
    from gems_ray.files import write_text_atomically
    from gems_ray.results.report import page

    write_text_atomically(Path(output), page(_read_results(folders)))
    return Path(output)


@dataclass(frozen=True, slots=True)
class Run:
    """The results of a run, read from its folder at every call.

    Args:
        folder: of the run.
    """

    folder: "RunFolder"

    @property
    def path(self) -> Path:
        """The folder."""
        return self.folder.path

    @property
    def experiment(self) -> "Experiment":
        """What was asked for; `gems_ray.run(run.experiment, run.path)` goes on."""
        return self.folder.experiment()

    def cells(self) -> "pd.DataFrame":
        """One row per cell: what it is, its status, its returns, its last diagnostics, the reason of a failure.

        Raises:
            RunFolderError: a file of the folder is damaged.
        """
        from gems_ray.results.cells import cells_frame

        return cells_frame(self.folder)

    def metrics(self) -> "pd.DataFrame":
        """One row per cell and evaluation: the cell, and what was measured after so many updates.

        Raises:
            RunFolderError: a file of the folder is damaged.
        """
        from gems_ray.results.curves import metrics_frame

        return metrics_frame(self.folder)

    def table(self) -> "pd.DataFrame":
        """The result: one row per environment and algorithm, beside the reference policies; of a search, `candidates`.

        Raises:
            RunFolderError: a file of the folder is damaged.
        """
        from gems_ray.results.tables import result_frame

        return self.candidates() if self.experiment.search else result_frame(self.folder)

    def trials(self) -> "pd.DataFrame":
        """One row per trial of a search: what was tried, the objectives, whether on the Pareto front.

        Raises:
            RunFolderError: the run is no search, or a file of the folder is damaged.
        """
        from gems_ray.results.search import trials_frame

        return trials_frame(self.folder)

    def candidates(self) -> "pd.DataFrame":
        """One row per setting that a search trained again: in the search, on fresh seeds, on the test users.

        Raises:
            RunFolderError: the run is no search, or a file of the folder is damaged.
        """
        from gems_ray.results.search import candidates_frame

        return candidates_frame(self.folder)

    def policy(self, cell: str, checkpoint: Literal["best", "last"] = "best", device: str = "cpu") -> "Policy":
        """What a cell has learned.

        Args:
            cell: its name, or a part of the name that no other cell has.
            checkpoint: the best one on the validation users, or the last one.
            device: where the networks live.
        Raises:
            RunFolderError: there is no such cell, or it has no such checkpoint yet.
            UnknownNameError: its algorithm is not installed here.
        Example:
            policy = gems_ray.open_run("runs/demo").policy("diffuse_mix-td3_bc-seed0")
        """
        from gems_ray.execution.cell_policy import read_policy

        return read_policy(self.folder, self.folder.find_cell(cell), checkpoint, device)


def comparison(folders: "str | Path | Sequence[str | Path]") -> "pd.DataFrame":
    """One row per environment, algorithm, settings and checkpoint of one or many runs, with intervals and tests.

    Needs neither Ray nor torch.

    Args:
        folders: of the runs.
    Returns:
        mean, deviation and interquartile mean with its 95% interval in clicks per episode, score, Welch's p-value
        against the best of the environment after Holm's correction, how often the best is better, and the names of
        the cells; docs/analysis.md describes every column.
    Raises:
        RunFolderError: one is not the folder of a run, or a file of it is damaged.
    Example:
        gems_ray.comparison(["runs/comparison_mixed", "runs/comparison_mixed_alpha"])
    """
    from gems_ray.results.comparison import Comparison

    return Comparison(_opened(folders)).compared


def curves(folders: "str | Path | Sequence[str | Path]") -> "pd.DataFrame":
    """The learning curves of all cells of one or many runs: one row per report. Needs neither Ray nor torch.

    Args:
        folders: of the runs.
    Returns:
        run, cell, environment, algorithm, seed and the settings in which the cells differ; then the metrics.
    Raises:
        RunFolderError: one is not the folder of a run, or a file of it is damaged.
    Example:
        gems_ray.curves("runs/demo").groupby(["algorithm", "updates"])["eval/return_mean"].mean()
    """
    from gems_ray.results.curves import curves_frame

    return curves_frame(_opened(folders))


def _opened(folders: "str | Path | Sequence[str | Path]") -> "list[RunFolder]":
    given = [folders] if isinstance(folders, str | Path) else folders
    return [open_run(folder).folder for folder in given]


def _read_results(folders: "str | Path | Sequence[str | Path]") -> "Results":
    from gems_ray.experiments.readable_run import ReadableRun
    from gems_ray.results.results import Results

    several = [folders] if isinstance(folders, str | Path) else folders
    return Results([ReadableRun.open(Path(folder)) for folder in several])


def _checked(experiment: "str | Path | Mapping[str, Any] | Experiment") -> "Experiment":
    """The experiment; every name and setting in it exists."""
    from gems_ray.experiments.check import check_experiment, load_experiment
    from gems_ray.experiments.spec import Experiment

    if isinstance(experiment, str | Path):
        return load_experiment(Path(experiment))
    return check_experiment(experiment.as_yaml() if isinstance(experiment, Experiment) else experiment)


def _run_path(experiment: "str | Path | Mapping[str, Any] | Experiment", folder: str | Path | None) -> Path:
    if folder is not None:
        return Path(folder)
    if isinstance(experiment, str | Path):
        return RUNS / Path(experiment).stem
    raise ConfigError("folder: expected the folder of the run, because this experiment comes from no file.")


def _world(world: "str | Path | World") -> "World":
    return load_world(world) if isinstance(world, str | Path) else world


def _check_seed(seed: int | None) -> None:
    if seed is not None and seed < 0:
        raise ConfigError(f"seed {seed}: expected 0 or larger.")
