"""Tests whether a dataset was logged in a world, without believing what it says."""

from dataclasses import dataclass, replace

import numpy as np
import torch

from gems_ray.data.schema import Attachment, Dataset
from gems_ray.data.trajectories import last_steps, trajectory_ends
from gems_ray.evaluation.belonging import check_items
from gems_ray.evaluation.replay import Explanation, explain, explain_first
from gems_ray.evaluation.watching import Watched, watch
from gems_ray.rng import stream
from gems_ray.simulator import Environment, TopicRec
from gems_ray.simulator.environments import ENVIRONMENTS
from gems_ray.world.bundle import World

ROWS = 2_000  # transitions that are replayed, drawn from the whole file
MOST_UNEXPLAINED = 0.005  # of them: ties of the ranker that fall differently on another machine
WIDEST_ACTION = 1.05  # in sides of the action box, inside which every agent of the original program acts
EPISODES = 30  # watched at once
MOST_ROUNDS = 8  # of watching, as long as another click model explains the clicks nearly as well
DECISIVE = 10.0  # log-odds of e^10, 22,000 to 1
LOWEST_LOG_ODDS = -3.0  # 1 to 20, beyond which another click model is the better one
LOWEST_SURPRISE = -8.0  # standard deviations
CONFIDENCE = 0.99
OWN = "own"  # click model


@dataclass(frozen=True, slots=True)
class Belonging:
    """What the tests of a dataset in a world found.

    Args:
        world: fingerprint and environment, for messages.
        refusal: why they do not belong together; None where they do.
        facts: figures of the tests.
        notes: what was not or could not be tested, whole sentences.
    """

    world: str
    refusal: str | None
    facts: Attachment
    notes: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """The figures in whole sentences, with what each test would have missed."""
        facts = self.facts
        rows, explained = facts.transitions, facts.explained
        lines = [f"replayed transitions: {explained:,} of {rows:,} are explained by ranker and belief encoder."]
        if rows and explained == rows:
            missed = 1 - (1 - CONFIDENCE) ** (1 / rows)
            lines.append(f"  If {missed:.2%} of the file came from elsewhere, {CONFIDENCE:.0%} of such tests find it.")
        if facts.episodes:
            lines.append(
                f"first beliefs: those of {facts.episodes:,} episodes follow from the first slate of its items."
            )
        if facts.watched_slots:
            lines.append(
                f"clicks: {facts.watched_slots:,} slots, {facts.surprise:+.1f} standard deviations from what the click "
                f"model expects (below {LOWEST_SURPRISE:g} is refused)."
            )
            lines.append(
                f"  Against {facts.nearest_rival}, the nearest other click model, the log-odds are "
                f"{facts.log_odds:+.1f} (below {LOWEST_LOG_ODDS:g} is refused, above {DECISIVE:g} is decisive)."
            )
        return [*lines, *self.notes]


def examine(dataset: Dataset, world: World, where: str = "dataset", seed: int = 0) -> Belonging:
    """Tests whether a dataset was logged in a world, without believing what it says.

    First, actions must lie in the action box. Second, every logged belief must follow from the one before by the slate
    that the ranker makes of the action and by as many clicks as the reward says: with 2^10 possible clicks, others are
    never near. Third, the first belief of an episode must follow from the first slate, which the item vectors decide.
    Fourth, the clicks must be likely under the click model, and likelier than under those of the other environments.

    Args:
        dataset: logged transitions.
        world: in which they may have been logged.
        where: file name for messages.
        seed: of the rows that are drawn, and of the possible users.
    Raises:
        DatasetError: its slates hold items that the world does not have.
    """
    check_items(dataset, world, where)
    named = f"{world.fingerprint} ({world.environment.name})"
    rng = stream(seed, "attach")

    def refused(reason: str, rows: int = 0, explained: int = 0, episodes: int = 0) -> Belonging:
        return Belonging(named, reason, _facts(rows, explained, episodes))

    if reason := _wrong_shape(dataset, world):
        return refused(reason)
    rows = np.sort(rng.choice(len(dataset), min(ROWS, len(dataset)), replace=False))
    replayed = explain(world, dataset, rows)
    explained = int(replayed.explained.sum())
    if explained < (1 - MOST_UNEXPLAINED) * len(rows):
        return refused(_why_unexplained(dataset, world, rows, explained), len(rows), explained)
    if reason := _contradiction(dataset, rows, replayed):
        return refused(reason, len(rows), explained)

    ends = _ends(dataset)
    starts = np.concatenate([[0], ends[:-1] + 1])
    first_slate = TopicRec(world.environment, world.items).first_slate[: world.environment.slate_size]
    chosen = np.sort(rng.choice(len(starts), min(ROWS, len(starts)), replace=False))
    first = explain_first(world, first_slate, dataset.observations[starts[chosen]])
    begun = int(first.explained.sum())
    if begun < (1 - MOST_UNEXPLAINED) * len(chosen):
        return refused(
            f"the first beliefs of {len(chosen) - begun:,} of {len(chosen):,} episodes do not follow from the first "
            "slate that its item vectors give. Its item vectors are others, or the episodes do not begin at the start.",
            len(rows),
            explained,
            begun,
        )
    whole = np.flatnonzero(first.explained)
    order = rng.permutation(whole)
    episodes = [(starts[chosen[i]], ends[chosen[i]], first.clicks[i]) for i in order]
    judged, rival, odds = _judge(dataset, world, first_slate, episodes, seed)
    return _verdict(named, _facts(len(rows), explained, begun), judged, rival, odds)


def _wrong_shape(dataset: Dataset, world: World) -> str | None:
    """What can be seen without replaying anything."""
    low, high = dataset.actions.min(axis=0), dataset.actions.max(axis=0)
    sides = np.abs(world.bounds.normalise(np.stack([low, high])))
    if sides.max() > WIDEST_ACTION:
        outside = int((np.abs(world.bounds.normalise(dataset.actions[:100_000])) > WIDEST_ACTION).any(axis=1).sum())
        return (
            f"its actions reach {sides.max():.2f} times as far as the action box, in {outside:,} of the first "
            f"{min(len(dataset), 100_000):,} rows. Name the world whose ranker they were chosen for."
        )
    largest = float(np.abs(dataset.observations).max())
    if largest > 1 + 1e-3:
        return (
            f"its observations reach {largest:.2f}, and a belief stays within -1 to 1. They may have been normalised."
        )
    longest = int(np.diff(_ends(dataset), prepend=-1).max())
    if longest > world.environment.episode_length:
        return f"an episode has {longest:,} steps, expected at most {world.environment.episode_length}."
    return None


def _why_unexplained(dataset: Dataset, world: World, rows: np.ndarray, explained: int) -> str:
    """The refusal of a file whose transitions cannot have happened, and what may be wrong with it."""
    few = rows[:: max(1, len(rows) // 64)]
    scaled = replace(dataset, actions=dataset.actions.copy())
    scaled.actions[few] = world.bounds.to_latent(dataset.actions[few])
    text = (
        f"{len(rows) - explained:,} of {len(rows):,} transitions cannot have happened in it: what its ranker shows for "
        "the action leads with no clicks at all to the next belief."
    )
    if explain(world, scaled, few).explained.mean() > 0.5:
        return f"{text} Its actions are normalised: multiply them by the scale of the action box and add its center."
    if dataset.slates is not None:
        same = (world.ranker.decode(torch.from_numpy(dataset.actions[few])) == dataset.slates[few]).all(axis=1).mean()
        kind = "they are its slates, so the belief encoder is another" if same > 0.5 else "they are not its slates"
        return f"{text} The slates of the file were compared with the ranker: {kind}."
    return f"{text} The file is of another ranker, belief encoder or environment, or its rows were shuffled."


def _contradiction(dataset: Dataset, rows: np.ndarray, replayed: Explanation) -> str | None:
    """What the explained transitions say against rewards, slates and clicks of the file."""
    right = replayed.explained
    rewards = dataset.rewards[rows]
    if (wrong := int((right & (replayed.clicks.sum(axis=1) != rewards)).sum())) > MOST_UNEXPLAINED * len(rows):
        return (
            f"the rewards of {wrong:,} of {len(rows):,} transitions are not the number of clicks. They may be scaled."
        )
    for name, logged, expected in (
        ("slates", dataset.slates, replayed.slates),
        ("clicks", dataset.clicks, replayed.clicks),
    ):
        if logged is not None:
            wrong = int((right & (logged[rows] != expected).any(axis=1)).sum())
            if wrong > MOST_UNEXPLAINED * len(rows):
                return f"the {name} of {wrong:,} of {len(rows):,} transitions are not those that the beliefs tell."
    return None


def _judge(
    dataset: Dataset,
    world: World,
    first_slate: np.ndarray,
    episodes: list[tuple[int, int, np.ndarray]],
    seed: int,
) -> tuple[Watched | None, str, float]:
    """Watches episodes until the click model is decided: how it fits, the nearest rival, the log-odds against it."""
    models = _click_models(world.environment)
    totals: dict[str, list[Watched]] = {name: [] for name in models}
    for number in range(MOST_ROUNDS):
        part = episodes[number * EPISODES : (number + 1) * EPISODES]
        if not part:
            break
        slates, clicks, active = _history(dataset, world, first_slate, part)
        for name, environment in models.items():
            rng = stream(seed, "attach", "users", number)
            totals[name].append(watch(environment, world.items, slates, clicks, active, rng))
        likelihoods = {name: sum(part.log_likelihood for part in parts) for name, parts in totals.items()}
        own = likelihoods.pop(OWN)
        rival = max(likelihoods, key=lambda name: likelihoods[name])
        if not DECISIVE > own - likelihoods[rival] > 2 * LOWEST_LOG_ODDS:
            break
        models = {name: model for name, model in models.items() if name in (OWN, rival)}
        totals = {name: parts for name, parts in totals.items() if name in models}
    parts = totals[OWN]
    slots = sum(part.slots for part in parts)
    if not slots:
        return None, "", 0.0
    surprise = sum(part.surprise * part.slots**0.5 for part in parts) / slots**0.5
    return Watched(slots, own, surprise), rival, own - likelihoods[rival]


def _click_models(environment: Environment) -> dict[str, Environment]:
    """The world's click model, and those of the environments that users click differently in."""
    prefix = environment.name.partition("_")[0]
    rivals = {
        name: other
        for name, other in ENVIRONMENTS.items()
        if name.startswith(prefix)
        and (other.mixed_examination, other.diversity_penalty)
        != (environment.mixed_examination, environment.diversity_penalty)
    }
    return {OWN: environment, **rivals}


def _history(
    dataset: Dataset, world: World, first_slate: np.ndarray, episodes: list[tuple[int, int, np.ndarray]]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Slates, clicks and what is not padding of whole episodes, as `watch` wants them."""
    steps, slots = world.environment.episode_length, world.environment.slate_size
    slates = np.zeros((len(episodes), steps + 1, slots), dtype=np.int64)
    clicks = np.zeros(slates.shape, dtype=bool)
    active = np.zeros((len(episodes), steps), dtype=bool)
    slates[:, 0] = first_slate
    rows = np.concatenate([np.arange(start, end + 1) for start, end, _ in episodes])
    replayed = explain(world, dataset, rows)
    done = 0
    for number, (start, end, first_clicks) in enumerate(episodes):
        length = end - start + 1
        part = slice(done, done + length)
        clicks[number, 0] = first_clicks
        slates[number, 1 : length + 1], clicks[number, 1 : length + 1] = replayed.slates[part], replayed.clicks[part]
        # What stands after a gap in the beliefs is of another user.
        follows = (dataset.observations[start + 1 : end + 1] == dataset.next_observations[start:end]).all(axis=1)
        active[number, :length] = replayed.explained[part] & np.append(True, np.logical_and.accumulate(follows))
        done += length
    return slates, clicks, active


def _verdict(named: str, facts: Attachment, judged: Watched | None, rival: str, odds: float) -> Belonging:
    if judged is None:
        note = "clicks: too few in any episode to judge the click model, so the environment is not tested."
        return Belonging(named, None, facts, (note,))
    facts = facts.model_copy(
        update={
            "watched_slots": judged.slots,
            "surprise": round(judged.surprise, 2),
            "nearest_rival": rival,
            "log_odds": round(odds, 2),
        }
    )
    if odds < LOWEST_LOG_ODDS:
        reason = f"the users click as in {rival}: the log-odds of its own click model against that are {odds:.1f}."
        return Belonging(named, reason, facts)
    if judged.surprise < LOWEST_SURPRISE:
        reason = (
            f"its users would not click so: the clicks in {judged.slots:,} slots are {-judged.surprise:.0f} standard "
            "deviations less likely than its click model expects. Its item vectors or its environment are others."
        )
        return Belonging(named, reason, facts)
    unsure = f"Not sure: the clicks do not tell its environment from {rival}. Make sure of it yourself."
    return Belonging(named, None, facts, (unsure,) if odds < DECISIVE else ())


def _facts(rows: int, explained: int, episodes: int) -> Attachment:
    return Attachment(
        transitions=rows,
        explained=explained,
        episodes=episodes,
        watched_slots=0,
        surprise=0.0,
        nearest_rival="",
        log_odds=0.0,
    )


def _ends(dataset: Dataset) -> np.ndarray:
    return trajectory_ends(last_steps(dataset.arrays))
