"""Training on several devices or machines with `tf.distribute`.

Each replica holds the whole model and reads its share of each batch. This file chooses the strategy, sums values over
the replicas, decides which process writes files, and turns the loss of a worker into a one-line error.
"""

import contextlib
import json
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from gpt2_tf.files import interrupt

MIRRORED, MULTI_WORKER = "mirrored", "multi-worker"
EXAMPLE = '{"cluster": {"worker": ["HOST:PORT", "HOST:PORT"]}, "task": {"type": "worker", "index": 0}}'
# The errors that TensorFlow raises in a worker whose peer has died.
LOST = (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError, tf.errors.DeadlineExceededError)


def make_strategy(name: str | None) -> tf.distribute.Strategy:
    """Make the `tf.distribute` strategy of this name.

    Call this function before any other work with TensorFlow: its collective operations are set up once per process.

    Args:
        name: None is TensorFlow's default strategy, one device. "mirrored" puts a replica on each GPU of this machine,
            or on each logical CPU device if there is no GPU. "multi-worker" puts replicas on the GPUs (or the CPU) of
            each worker that the environment variable `TF_CONFIG` names, and waits until all workers have connected.

    Raises:
        ValueError: no strategy has this name, or `TF_CONFIG` is missing or invalid.

    Example:
        >>> make_strategy(None).num_replicas_in_sync
        1
    """
    if name is None:
        return tf.distribute.get_strategy()
    if name == MIRRORED:
        devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
        return tf.distribute.MirroredStrategy([device.name for device in devices])
    if name == MULTI_WORKER:
        print(f"waiting for all {_count_workers()} workers of TF_CONFIG", file=sys.stderr)
        with _default_interrupt():
            return tf.distribute.MultiWorkerMirroredStrategy()
    raise ValueError(f"strategy is {name!r}, but must be {MIRRORED} or {MULTI_WORKER}")


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Return whether this process is the worker that writes the run's files.

    Example:
        >>> is_chief(make_strategy(None))
        True
    """
    return strategy.extended.should_checkpoint


def is_multi_worker(strategy: tf.distribute.Strategy) -> bool:
    """Return whether the strategy spans the processes that `TF_CONFIG` names.

    Example:
        >>> is_multi_worker(make_strategy(None))
        False
    """
    kind = tf.distribute.MultiWorkerMirroredStrategy
    return isinstance(strategy, kind) and bool(strategy.cluster_resolver.cluster_spec().as_dict())


def all_reduce_sum(values: Any) -> Any:
    """Sum a nested structure of tensors over all replicas. Call it within a replica's step.

    Example:
        >>> float(all_reduce_sum(tf.constant(3.0)))  # of one replica
        3.0
    """
    context = tf.distribute.get_replica_context()
    if context.num_replicas_in_sync == 1:
        return values
    return context.all_reduce(tf.distribute.ReduceOp.SUM, values)


def run_if(condition: tf.Tensor, function: Callable[[Any], None], values: Any) -> None:
    """Call `function(values)` within a replica's step if `condition`, bool [], holds; it is the same in all replicas.

    `function` may update variables. With a strategy, TensorFlow updates a variable in all replicas together
    (`merge_call`), which fails within a replica's `tf.cond`. So the `tf.cond` is placed around all replicas.

    Example:
        >>> total = tf.Variable(0.0)
        >>> run_if(tf.constant(True), total.assign_add, 2.0)
        >>> run_if(tf.constant(False), total.assign_add, 2.0)
        >>> float(total)
        2.0
    """

    def run_all(strategy, conditions, values):
        condition = strategy.experimental_local_results(conditions)[0]
        cond(condition, lambda: strategy.extended.call_for_each_replica(function, args=(values,)))

    def cond(condition, run):
        def true():
            run()
            return True

        tf.cond(condition, true, lambda: False)

    if tf.distribute.has_strategy():
        tf.distribute.get_replica_context().merge_call(run_all, args=(condition, values))
    else:
        cond(condition, lambda: function(values))


def per_replica_seed(seed: tf.Tensor) -> tf.Tensor:
    """Derive a per-replica seed, int32 [2]; unchanged with one replica.

    Example:
        >>> per_replica_seed(tf.constant([0, 1])).numpy().tolist()
        [0, 1]
    """
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return seed
    return tf.random.fold_in(seed, context.replica_id_in_sync_group)


def barrier(strategy: tf.distribute.Strategy) -> None:
    """Wait until all workers have called this function.

    Example:
        >>> barrier(make_strategy(None))  # returns at once, since there are no other workers
    """
    if is_multi_worker(strategy):
        strategy.reduce(tf.distribute.ReduceOp.SUM, tf.constant(1.0), axis=None)


@contextlib.contextmanager
def one_line_worker_errors(strategy: tf.distribute.Strategy) -> Iterator[None]:
    """When a worker dies, raise a one-line ConnectionError in the others.

    TensorFlow notices a process that exits at once. A machine that stops answering is noticed by its missing
    heartbeats, after 10 seconds.

    Example:
        >>> with one_line_worker_errors(make_strategy(None)):
        ...     pass  # train here
    """
    try:
        yield
    except tf.errors.OpError as error:
        aborted = re.search("Collective ops is aborted by: (.*)", error.message)
        if not is_multi_worker(strategy) or not (aborted or isinstance(error, LOST)):
            raise
        reason = (aborted[1] if aborted else error.message.partition("\n")[0]).rstrip(" :.")
        raise ConnectionError(
            f"another worker was lost ({reason}); read that worker's error, then start all workers again with "
            "--init-from resume to continue from the last checkpoint"
        ) from error


def _count_workers() -> int:
    """Return the number of workers that `TF_CONFIG` names. Raises ValueError if `TF_CONFIG` is missing or invalid."""
    config = os.environ.get("TF_CONFIG")
    try:
        found = json.loads(config or "")
        cluster, task = found["cluster"], found["task"]
        if not cluster.keys() <= {"chief", "worker"} or not 0 <= int(task["index"]) < len(cluster[task["type"]]):
            raise ValueError
        return sum(map(len, cluster.values()))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(
            f"TF_CONFIG is {config or 'not set'}, but must list the workers and say which of them this process is, "
            f"for example {EXAMPLE}"
        ) from None


@contextlib.contextmanager
def _default_interrupt() -> Iterator[None]:
    """Let Ctrl-C end the process while TensorFlow waits.

    TensorFlow waits in C++, so Python's own handler of SIGINT would not run until the wait is over.
    """
    if not interrupt.thread_receives_ctrl_c():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
