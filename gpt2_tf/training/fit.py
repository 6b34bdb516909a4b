"""The training loop: Keras's `fit` on a model, from the last saved step of a run to its end."""

import contextlib
import functools
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import keras
import tensorflow as tf

from encoder import Encoder
from gpt2_tf.data.prepared import Prepared
from gpt2_tf.files import interrupt
from gpt2_tf.model import distribute
from gpt2_tf.model.gpt2 import GPT2
from gpt2_tf.training import callbacks, run_folder
from gpt2_tf.training.input_pipeline import Batches, train_batches, val_batches
from gpt2_tf.training.optimizer import adamw
from gpt2_tf.training.run_folder import BEST_FOLDER, latest_step, steps_taken
from gpt2_tf.training.settings import TrainingSettings


def fit(
    model: GPT2,
    prepared: Prepared,
    out: str | os.PathLike,
    settings: TrainingSettings,
    extra_callbacks: Sequence[keras.callbacks.Callback] = (),
) -> None:
    """Train a model to the last step of its settings, and save everything about the run in a folder.

    Where the folder holds a checkpoint of the run, the training resumes from its step, with the same batches, dropout
    and optimizer state as without the stop; the model must then have the checkpoint's weights. The model trains under
    the strategy in whose scope it was made. Of several workers only the chief writes.

    Args:
        model: the model to train.
        prepared: the token ids to train on, and those to validate on if there are any.
        out: the run's folder; `run_folder` lists what will be in it.
        settings: the settings of the run.
        extra_callbacks: Keras callbacks to run besides those of the run.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed; the step that was reached is saved.
        ValueError: the loss or a weight is NaN or infinite. The last checkpoint stays.
        OSError: the folder can't be written, or the disk is full.

    Example:
        >>> from gpt2_tf import HParams
        >>> from gpt2_tf.data.prepare import prepare
        >>> _ = Path("text.txt").write_text("to be or not to be, " * 20)
        >>> prepared = prepare(["text.txt"], "prepared", enc)
        >>> small = GPT2(HParams(n_vocab=enc.n_vocab, n_ctx=8, n_embd=4, n_head=1, n_layer=1))
        >>> settings = TrainingSettings(learning_rate=1e-3, window=8, warmup_steps=0, steps=2)
        >>> fit(small, prepared, "run", settings)
        >>> latest_step("run")
        2
    """
    out = Path(out)
    strategy = model.distribute_strategy
    is_chief = distribute.is_chief(strategy)
    if is_chief:
        out.mkdir(parents=True, exist_ok=True)
    _compile(model, settings)
    best = None
    if prepared.val is not None:
        best = callbacks.Best(out / BEST_FOLDER if is_chief else None, settings.patience)
    extra_state = {"best": best.state} if best else {}
    step = run_folder.restore_step(model, out, extra_state)
    save = functools.partial(run_folder.save_step, model, out, extra_state)
    watch = run_folder.FolderWatch(out)
    log = callbacks.Log(out / "log.csv") if is_chief else None
    validation = val_batches(prepared, settings, strategy)
    if is_chief and step >= settings.steps:
        print(f"all {step} steps are done; give a larger --steps to train longer", file=sys.stderr)

    def save_last_step() -> None:
        if not is_chief:
            return
        if not watch.is_in_place():
            raise _save_in_renamed_folder(model, watch, extra_state)
        # Saving a step over itself would leave a moment in which its files are not whole.
        if latest_step(out) != (now := steps_taken(model)):
            save(now)

    with contextlib.closing(watch):
        try:
            with interrupt.reliable_ctrl_c():
                if best and _missed_evaluation(step, best, settings):
                    _evaluate(model, validation, [hook for hook in (best, log) if hook], settings)
                if not (best and best.stopped):
                    hooks = [callbacks.StopAtNaN(), *([best] if best else []), *extra_callbacks]
                    if is_chief:
                        enc = prepared.encoder
                        hooks = _chief_callbacks(model, enc, watch, settings, best, log, extra_callbacks, save)
                    ctrl_c = keras.callbacks.LambdaCallback(
                        on_train_batch_end=lambda batch, logs: interrupt.raise_dropped_ctrl_c()
                    )
                    _train(model, prepared, settings, validation, [*hooks, ctrl_c])
        except KeyboardInterrupt as error:
            # If the step failed because the other workers stopped too, a part of the weights may have changed already.
            if not (distribute.is_multi_worker(strategy) and isinstance(error.__context__, tf.errors.OpError)):
                save_last_step()
            raise
        except FileNotFoundError:
            if not watch.is_in_place():
                save_last_step()
            raise
        save_last_step()
    distribute.barrier(strategy)  # a worker that left while another is at work would look like a lost worker


def _save_in_renamed_folder(
    model: GPT2, watch: run_folder.FolderWatch, extra_state: Mapping[str, tf.Variable]
) -> FileNotFoundError:
    """Save the step that was reached in the folder of the run under its new name; return the error to raise."""
    message = f"{watch.out} was renamed or removed while the run trains, which has ended it"
    renamed = watch.new_path()
    if renamed is None:
        return FileNotFoundError(f"{message}; the last checkpoint is in the renamed folder. Resume the run there")
    if latest_step(renamed) != (step := steps_taken(model)):
        run_folder.save_step(model, renamed, extra_state, step)
    return FileNotFoundError(f"{message}. Step {step} is saved in {renamed}; resume it with --out {renamed}")


def _compile(model: GPT2, settings: TrainingSettings) -> None:
    """Give the model its optimizer, and its random generators the run's seed."""
    with model.distribute_strategy.scope():
        optimizer = adamw(
            settings.learning_rate,
            settings.steps,
            warmup_steps=settings.warmup_steps,
            weight_decay=settings.weight_decay,
            clip_norm=settings.clip_norm,
        )
        model.compile(optimizer, grad_accumulation=settings.grad_accumulation)
        model.optimizer.build(model.trainable_variables)
    model.seeds.state.assign([settings.seed, 0])


def _chief_callbacks(
    model: GPT2,
    enc: Encoder,
    watch: run_folder.FolderWatch,
    settings: TrainingSettings,
    best: callbacks.Best | None,
    log: callbacks.Log,
    extra_callbacks: Sequence[keras.callbacks.Callback],
    save: Callable[[int], None],
) -> list[keras.callbacks.Callback]:
    """Return the callbacks of the chief. Each callback sees what earlier callbacks added to the logs."""
    n_replicas = model.distribute_strategy.num_replicas_in_sync
    frozen = bool(settings.lora_rank)
    show_sample = functools.partial(callbacks.show_sample, model, enc, watch.out / "samples.txt", settings.seed)
    return [
        callbacks.StopAtNaN(),
        callbacks.StopAtRename(watch),
        callbacks.Throughput(model.hparams, settings.window, settings.batch_size, n_replicas, frozen),
        *([best] if best else []),
        log,
        callbacks.Every(settings.sample_every, show_sample),
        *extra_callbacks,
        callbacks.Every(settings.save_every, save),
    ]


def _missed_evaluation(step: int, best: callbacks.Best, settings: TrainingSettings) -> bool:
    """Whether the run was stopped between the save of a step and the evaluation that is due at the same step."""
    due = step > 0 and (step % settings.eval_every == 0 or step == settings.steps)
    return due and step != best.step


def _evaluate(
    model: GPT2,
    validation: tuple[Batches, int],
    evaluation_callbacks: Sequence[keras.callbacks.Callback],
    settings: TrainingSettings,
) -> None:
    """Evaluate the model as it is now, and tell the callbacks as `fit` would at the end of an epoch."""
    batches, n_batches = validation
    logs = {"val_loss": model.evaluate(batches, steps=n_batches, verbose=0)}
    epoch = -(-steps_taken(model) // settings.eval_every) - 1
    for callback in evaluation_callbacks:
        callback.set_model(model)
        callback.on_epoch_end(epoch, logs)


def _train(
    model: GPT2,
    prepared: Prepared,
    settings: TrainingSettings,
    validation: tuple[Batches | None, int | None],
    hooks: Sequence[keras.callbacks.Callback],
) -> None:
    """Run Keras's `fit` until the last step, or until a callback stops the training.

    An epoch ends at an evaluation. A resumed run may start within an epoch, and the last epoch may be shorter. All
    epochs of a `fit` have the same length, so the training may take three calls of it.
    """
    is_chief = distribute.is_chief(model.distribute_strategy)
    verbose = 0 if not is_chief else 1 if sys.stderr.isatty() else 2
    val_dataset, val_steps = validation
    step = steps_taken(model)
    while step < settings.steps:
        epoch, steps_into_epoch = divmod(step, settings.eval_every)
        steps_per_epoch = min(settings.eval_every - steps_into_epoch, settings.steps - step)
        epochs = (settings.steps - step) // steps_per_epoch if steps_per_epoch == settings.eval_every else 1
        with contextlib.redirect_stdout(sys.stderr):  # where Keras prints its progress
            model.fit(
                train_batches(prepared, settings, model.distribute_strategy, step),
                initial_epoch=epoch,
                epochs=epoch + epochs,
                steps_per_epoch=steps_per_epoch,
                validation_data=val_dataset,
                validation_steps=val_steps,
                callbacks=list(hooks),
                shuffle=False,
                verbose=verbose,
            )
        if model.stop_training:
            return
        step = steps_taken(model)
