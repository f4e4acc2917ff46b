"""Names of everything that a training run reports."""

STEP = "updates"
SECONDS = "seconds"
UPDATES_PER_SECOND = "updates_per_second"
EVALUATED = "evaluated_updates"  # updates at the last evaluation
BEST_UPDATES = "best_updates"  # updates at the best one so far
ENGINE = "engine"  # how most of the updates run, see docs/performance.md
STATUS, REASON = "status", "reason"  # of the cell
PACK = "pack"  # reports of the further cells that a process trains, by name
LOG = "log"  # what a reader of the cell's log should know, since the last report

Q_DATASET = "train/q_dataset"  # mean smaller critic at the dataset's actions
Q_POLICY = "train/q_policy"  # ... at the policy's actions
Q_RANDOM = "train/q_random"  # ... at uniform actions
Q_BOUND = "train/q_bound"  # highest discounted return-to-go in the dataset: no honest Q passes it
Q_ABOVE_BOUND = "train/q_above_bound"  # share of Q at policy actions above the bound
TD_ERROR = "train/td_error"  # mean distance of Q at the dataset's actions from its target
CLONING_ERROR = "train/cloning_error"  # mean squared distance of policy and dataset actions, normalised units

RETURN_MEAN = "eval/return_mean"
RETURN_SE = "eval/return_se"
RETURN_PER_STEP = "eval/return_per_step"
DISTINCT_ITEMS = "eval/distinct_items_per_slate"
DISTINCT_SLATES = "eval/distinct_slates"  # different slates among all that were shown to all users
REPEATED_SLATES = "eval/repeated_slates"  # share of slates that the same user had seen before in the episode
COVERAGE = "eval/catalogue_coverage"
TOPIC_ENTROPY = "eval/topic_entropy"  # of the shown items' topics, in bits
BORED_TOPICS = "eval/bored_topics"
BEST_RETURN = "eval/best_return_mean"


def train(name: str) -> str:
    """The key of a metric that an algorithm's update returns."""
    return f"train/{name}"


def gradient_norm(optimizer: str) -> str:
    """The key of the norm of the gradients that an optimiser saw last."""
    return f"train/gradient_norm_{optimizer}"


def test(kind: str, name: str) -> str:
    """The key of what the test users made of a checkpoint, `last` or `best`; by the fields of `Evaluation`."""
    return f"test/{kind}/{name}"


def offline(name: str) -> str:
    """The key of what held-out episodes say of the last checkpoint; by the fields of `OfflineEvaluation`."""
    return f"offline/{name}"
