"""Trains the small model that ships with gpt2_tf, from one text file: its vocabulary, then its weights.

    python examples/train_shakespeare.py tinyshakespeare.txt shakespeare

The first 90% of the text train it; the last 10% say how good it is, in nats a character, so that models with any
vocabulary compare. Needs the extra `tokenizers`; takes about half an hour on two cores.
"""

import argparse
import math
import tempfile
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from encoder import Encoder
from encoder.train import train as train_vocabulary
from gpt2_tf import GPT2, HParams
from gpt2_tf.dataset import random_windows


def with_openings(ids: list[int], encoder: Encoder, n_openings: int, window: int, seed: int) -> list[int]:
    """The text, and after it `n_openings` pieces of it that begin with `<|endoftext|>` and a speech.

    One text has one beginning; these teach the model what to write after `<|endoftext|>`.
    """
    (newline,) = encoder.encode("\n")
    speeches = [i for i in range(2, len(ids)) if ids[i - 2] == ids[i - 1] == newline and ids[i] != newline]
    starts = np.random.default_rng(seed).choice(speeches, n_openings if speeches else 0)
    return ids + [id for start in starts for id in [encoder.end_of_text, *ids[start : start + window]]]


def nats_per_character(model: GPT2, encoder: Encoder, text: str) -> float:
    """The negative log-likelihood of the whole text, after `<|endoftext|>`, over its count of characters.

    Windows overlap by half: each token but the first has at least n_ctx / 2 tokens before it to go by, or all.
    """
    n_ctx = model.hparams.n_ctx
    ids = np.array([encoder.end_of_text, *encoder.encode(text)])
    total, scored = 0.0, 1
    while scored < len(ids):
        start = max(0, min(scored - n_ctx // 2, len(ids) - n_ctx - 1))
        tokens, targets = ids[start : start + n_ctx], ids[start + 1 : start + n_ctx + 1]
        logits = model.predict_on_batch(tokens[: len(targets)][None])[0].astype(np.float64)
        losses = np.log(np.exp(logits).sum(-1)) - logits[np.arange(len(targets)), targets]
        total += losses[scored - start - 1 :].sum()
        scored = start + 1 + len(targets)
    return total / len(text)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path, help="a UTF-8 text file")
    parser.add_argument("out", type=Path, help="the folder to write the model to")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--dropout", type=float, default=0.2)
    parser.add_argument("--n-vocab", type=int, default=1024)
    parser.add_argument("--n-ctx", type=int, default=256)
    parser.add_argument("--n-embd", type=int, default=256)
    parser.add_argument("--n-head", type=int, default=4)
    parser.add_argument("--n-layer", type=int, default=4)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()

    text = args.text.read_text(encoding="utf-8")
    split = int(0.9 * len(text))
    train_text, val_text = text[:split], text[split:]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "train.txt").write_text(train_text, encoding="utf-8")
        encoder = train_vocabulary([Path(folder, "train.txt")], args.n_vocab, args.out)

    keras.utils.set_random_seed(args.seed)
    keras.config.set_dtype_policy("mixed_bfloat16")  # float32 weights, a quarter faster
    shape = {name: getattr(args, name) for name in ("n_ctx", "n_embd", "n_head", "n_layer", "dropout")}
    model = GPT2(HParams(n_vocab=encoder.n_vocab, **shape))

    ids = encoder.encode(train_text)
    n_openings = len(ids) // (8 * args.n_ctx)
    dataset = random_windows(
        with_openings(ids, encoder, n_openings, args.n_ctx, args.seed), args.n_ctx, args.batch_size, seed=args.seed
    )
    val_ids = encoder.encode(val_text)
    n_val = len(val_ids) // (args.n_ctx + 1)
    rows = np.array(val_ids[: n_val * (args.n_ctx + 1)], np.int32).reshape(n_val, args.n_ctx + 1)
    val_dataset = tf.data.Dataset.from_tensor_slices((rows[:, :-1], rows[:, 1:])).batch(args.batch_size)

    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, args.steps, warmup_target=args.learning_rate, warmup_steps=args.steps // 20
    )
    optimizer = keras.optimizers.AdamW(schedule, weight_decay=0.1, beta_2=0.99, global_clipnorm=1.0)
    optimizer.exclude_from_weight_decay(var_names=["^[bg]$"])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    # Compiled by XLA a step takes longer on a CPU, in bfloat16 twice as long.
    model.compile(optimizer=optimizer, loss=loss, jit_compile=False)
    epochs = math.ceil(args.steps / 250)
    model.fit(dataset, epochs=epochs, steps_per_epoch=args.steps // epochs, validation_data=val_dataset)

    model.save_checkpoint(args.out)
    keras.config.set_dtype_policy("float32")
    nats = nats_per_character(GPT2.from_checkpoint(args.out), encoder, val_text)
    print(f"{model.hparams.n_params:,} parameters; {nats:.4f} nats a character on the last 10% of {args.text}")


if __name__ == "__main__":
    main()
