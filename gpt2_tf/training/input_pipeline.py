"""Prepared token ids -> the batches of a run, divided among its replicas."""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from gpt2_tf.data import dataset
from gpt2_tf.data.prepared import Prepared
from gpt2_tf.training.settings import TrainingSettings

Batches = tf.data.Dataset | tf.distribute.DistributedDataset


def train_batches(
    prepared: Prepared, settings: TrainingSettings, strategy: tf.distribute.Strategy, first_step: int
) -> Batches:
    """Endless, shuffled batches of the training tokens.

    Args:
        prepared: the token ids.
        settings: the settings of the run.
        strategy: its replicas each get an equal part of every batch.
        first_step: the step that the first batch is for; a resumed run gets the batches it would have had.

    Yields:
        `(tokens, targets)`, int32 [batch_size, window] each, over all replicas.

    Example:
        >>> prepared = Prepared(np.arange(100, dtype=np.uint16), None, enc)
        >>> settings = TrainingSettings(learning_rate=1e-3, window=8, warmup_steps=0, batch_size=2)
        >>> batches = train_batches(prepared, settings, tf.distribute.get_strategy(), first_step=0)
        >>> next(iter(batches))[0].shape
        TensorShape([2, 8])
    """
    make_rows = _row_maker(prepared, settings)
    return _distributed(make_rows, prepared.train, strategy, seed=settings.seed, start=first_step)


def val_batches(
    prepared: Prepared, settings: TrainingSettings, strategy: tf.distribute.Strategy
) -> tuple[Batches | None, int | None]:
    """The batches of the validation tokens, in order and once, and their count; (None, None) without such tokens.

    Example:
        >>> prepared = Prepared(np.arange(9, dtype=np.uint16), np.arange(100, dtype=np.uint16), enc)
        >>> settings = TrainingSettings(learning_rate=1e-3, window=8, warmup_steps=0, batch_size=2)
        >>> val_batches(prepared, settings, tf.distribute.get_strategy())[1]  # 99 targets, 16 per batch
        7
    """
    if prepared.val is None:
        return None, None
    make_rows = _row_maker(prepared, settings)
    return _distributed(make_rows, prepared.val, strategy), int(make_rows(prepared.val).cardinality())


def _row_maker(prepared: Prepared, settings: TrainingSettings) -> Callable[..., tf.data.Dataset]:
    """`dataset.documents` or `dataset.windows`, whichever the settings ask for, with their window and batch size."""

    def make_rows(ids: np.ndarray, **kwargs) -> tf.data.Dataset:
        if settings.documents:
            end_of_text = prepared.encoder.end_of_text
            return dataset.documents(ids, settings.window, settings.batch_size, end_of_text=end_of_text, **kwargs)
        return dataset.windows(ids, settings.window, settings.batch_size, **kwargs)

    return make_rows


def _distributed(
    make_rows: Callable[..., tf.data.Dataset], ids: np.ndarray, strategy: tf.distribute.Strategy, **kwargs
) -> Batches:
    """Return batches that are split equally among the replicas."""
    n_replicas = strategy.num_replicas_in_sync

    def worker_batches(context: tf.distribute.InputContext) -> tf.data.Dataset:
        # The replicas of a worker take the elements of its dataset in turn.
        count = n_replicas // context.num_input_pipelines
        replicas = dataset.ReplicaSlice(context.input_pipeline_id * count, count, n_replicas)
        return make_rows(ids, replicas=replicas, **kwargs)

    return strategy.distribute_datasets_from_function(worker_batches)
