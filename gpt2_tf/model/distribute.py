"""Training on several devices or machines, by `tf.distribute`.

Each replica has the whole model, and a part of each batch. What they do together is here: the choice of the strategy,
sums over the replicas, who may write, and what is said when one is lost.
"""

import contextlib
import json
import os
import re
import signal
import sys
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from gpt2_tf.files import interrupt

MIRRORED, MULTI_WORKER = "mirrored", "multi-worker"
EXAMPLE = '{"cluster": {"worker": ["HOST:PORT", "HOST:PORT"]}, "task": {"type": "worker", "index": 0}}'
LOST = (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError, tf.errors.DeadlineExceededError)


def strategy(name: str | None) -> tf.distribute.Strategy:
    """TensorFlow's strategy of this name; None is its default, one device. To be made before TensorFlow has any work.

    "mirrored" has a replica on each GPU of this machine, or without any on each logical CPU device. "multi-worker" has
    them on the GPUs, or the CPU, of each of the workers that `TF_CONFIG` names, and waits until all are there.

    Raises:
        ValueError: there is no such strategy, or `TF_CONFIG` isn't what `tf.distribute` takes.
    """
    if name is None:
        return tf.distribute.get_strategy()
    if name == MIRRORED:
        devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
        return tf.distribute.MirroredStrategy([device.name for device in devices])
    if name == MULTI_WORKER:
        print(f"waiting for all {_count()} workers of TF_CONFIG", file=sys.stderr)
        with _stoppable():
            return tf.distribute.MultiWorkerMirroredStrategy()
    raise ValueError(f"strategy is {name!r}, but must be {MIRRORED} or {MULTI_WORKER}")


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process, of those that train together, is the one that writes."""
    return strategy.extended.should_checkpoint


def many_workers(strategy: tf.distribute.Strategy) -> bool:
    """Whether it is of processes that `TF_CONFIG` names."""
    kind = tf.distribute.MultiWorkerMirroredStrategy
    return isinstance(strategy, kind) and bool(strategy.cluster_resolver.cluster_spec().as_dict())


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
        strategy.reduce(tf.distribute.ReduceOp.SUM, tf.constant(1.0), axis=None)


@contextlib.contextmanager
def losses_named(strategy: tf.distribute.Strategy) -> Iterator[None]:
    """The loss of a worker is a ConnectionError of one line, in all the others.

    A process that ends is noticed at once or by its heartbeats, which TensorFlow waits 10 seconds for, as is a machine
    that no longer answers.
    """
    try:
        yield
    except tf.errors.OpError as error:
        aborted = re.search("Collective ops is aborted by: (.*)", error.message)
        if not many_workers(strategy) or not (aborted or isinstance(error, LOST)):
            raise
        reason = (aborted[1] if aborted else error.message.partition("\n")[0]).rstrip(" :.")
        raise ConnectionError(
            f"another worker was lost ({reason}); see what it said. All of them, started again with --init-from "
            "resume, go on from the last checkpoint"
        ) from error


def _count() -> int:
    """How many workers `TF_CONFIG` names. ValueError where it isn't as it should be."""
    config = os.environ.get("TF_CONFIG")
    try:
        found = json.loads(config or "")
        cluster, task = found["cluster"], found["task"]
        if not cluster.keys() <= {"chief", "worker"} or not 0 <= int(task["index"]) < len(cluster[task["type"]]):
            raise ValueError
        return sum(map(len, cluster.values()))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(
            f"TF_CONFIG is {config or 'not set'}, but must name the workers and which of them this is, as {EXAMPLE}"
        ) from None


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """A Ctrl-C within ends the process, though TensorFlow waits and Python has no turn."""
    if not interrupt.comes_here():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
