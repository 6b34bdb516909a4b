"""Training on several devices or machines, by `tf.distribute`.

Each replica has the whole model, and a part of each batch. What they do together is here: the choice of the strategy,
sums over the replicas, who may write, and what is said when one is lost.
"""

import contextlib
import json
import os
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

MIRRORED, MULTI_WORKER = "mirrored", "multi-worker"
EXAMPLE = '{"cluster": {"worker": ["HOST:PORT", "HOST:PORT"]}, "task": {"type": "worker", "index": 0}}'


def strategy(name: str | None) -> tf.distribute.Strategy:
    """TensorFlow's strategy of this name; None is its default, one device. Called before any of TensorFlow's work.

    "mirrored" has a replica on each GPU of this machine, or without any on each logical CPU device. "multi-worker" has
    one on each GPU, or the CPU, of all the machines that `TF_CONFIG` names, and waits for them.

    Raises:
        ValueError: there is no such strategy, or `TF_CONFIG` isn't what `tf.distribute` takes.
        ConnectionError: the other workers aren't there.
    """
    if name is None:
        return tf.distribute.get_strategy()
    if name == MIRRORED or (name == MULTI_WORKER and workers() == 1):
        return tf.distribute.MirroredStrategy(tf.config.list_logical_devices("GPU") or None)
    if name == MULTI_WORKER:
        return tf.distribute.MultiWorkerMirroredStrategy()
    raise ValueError(f"strategy is {name!r}, but must be {MIRRORED} or {MULTI_WORKER}")


def workers() -> int:
    """How many `TF_CONFIG` names. ValueError where it isn't as it should be."""
    try:
        config = json.loads(os.environ.get("TF_CONFIG", ""))
        cluster, task = config["cluster"], config["task"]
        kinds = {kind: list(cluster[kind]) for kind in cluster}
        kinds[task["type"]][int(task["index"])]
        if not kinds.keys() <= {"chief", "worker"}:
            raise ValueError
    except (ValueError, KeyError, TypeError, IndexError):
        raise ValueError(
            f"TF_CONFIG is {os.environ.get('TF_CONFIG')!r}, but must name the workers and which of them this is, as in "
            f"{EXAMPLE}"
        ) from None
    return sum(map(len, kinds.values()))


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process, of those that train together, is the one that writes."""
    return strategy.extended.should_checkpoint


def many_workers(strategy: tf.distribute.Strategy) -> bool:
    return isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)


def total(values: Any) -> Any:
    """The sums over all replicas, of a structure of tensors; within a replica's step."""
    context = tf.distribute.get_replica_context()
    if context.num_replicas_in_sync == 1:
        return values
    return context.all_reduce(tf.distribute.ReduceOp.SUM, values)


def own(seed: tf.Tensor) -> tf.Tensor:
    """A seed, int32 [2], made another for each replica; with one it stays."""
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return seed
    return tf.random.fold_in(seed, context.replica_id_in_sync_group)


def meet(strategy: tf.distribute.Strategy) -> None:
    """Waits until all workers are here."""
    if many_workers(strategy):
        strategy.reduce(tf.distribute.ReduceOp.SUM, strategy.run(tf.function(lambda: tf.constant(1.0))), axis=None)


@contextlib.contextmanager
def failures_named(strategy: tf.distribute.Strategy) -> Iterator[None]:
    """What TensorFlow raises within, where several workers train together, becomes a ConnectionError."""
    try:
        yield
    except tf.errors.OpError as error:
        if not many_workers(strategy):
            raise
        raise ConnectionError(f"a worker was lost, or could not be reached: {error.message}") from error
