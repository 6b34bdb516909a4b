"""Train the small model that ships with gpt2_tf from one text file: first its vocabulary, then its weights.

    python examples/train_shakespeare.py tinyshakespeare.txt my-shakespeare

The model is trained on the first 90% of the text and scored on the last 10%, in nats per character, so that models
with different vocabularies can be compared. It needs the extra `tokenizers`, and takes half an hour on two cores.
"""

import argparse
import math
import tempfile
from pathlib import Path

import numpy as np

import gpt2_tf
from encoder import Encoder
from encoder.train import train as train_vocabulary


def with_openings(ids: list[int], encoder: Encoder, n_openings: int, window: int, seed: int) -> list[int]:
    """The ids of the text, followed by `n_openings` passages that begin with `<|endoftext|>` and then a speech.

    The text has only one beginning. The passages teach the model what to write after `<|endoftext|>`.
    """
    (newline,) = encoder.encode("\n")
    speeches = [i for i in range(2, len(ids)) if ids[i - 2] == ids[i - 1] == newline and ids[i] != newline]
    starts = np.random.default_rng(seed).choice(speeches, n_openings if speeches else 0)
    return ids + [id for start in starts for id in [encoder.end_of_text, *ids[start : start + window]]]


def nats_per_character(model: "gpt2_tf.GPT2", encoder: Encoder, text: str) -> float:
    """The negative log-likelihood of the text after `<|endoftext|>`, divided by the count of its characters.

    The windows overlap by half, so every token is predicted from at least n_ctx / 2 tokens, or from all before it.
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
    if args.steps < 1 or args.batch_size < 1:
        parser.error("--steps and --batch-size must be at least 1")
    try:
        text = args.text.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        parser.error(f"{args.text} is not UTF-8: {error}")
    if not text:
        parser.error(f"{args.text} is empty")
    hparams = gpt2_tf.HParams(
        n_vocab=args.n_vocab,
        n_ctx=args.n_ctx,
        n_embd=args.n_embd,
        n_head=args.n_head,
        n_layer=args.n_layer,
        dropout=args.dropout,
    )
    split = int(0.9 * len(text))
    train_text, val_text = text[:split], text[split:]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "train.txt").write_text(train_text, encoding="utf-8")
        encoder = train_vocabulary([Path(folder, "train.txt")], args.n_vocab, args.out)

    ids = encoder.encode(train_text)
    ids = with_openings(ids, encoder, len(ids) // (8 * args.n_ctx), args.n_ctx, args.seed)
    train(gpt2_tf.GPT2, hparams, ids, encoder.encode(val_text), args)
    nats = nats_per_character(gpt2_tf.GPT2.from_checkpoint(args.out), encoder, val_text)
    print(f"{hparams.n_params:,} parameters; {nats:.4f} nats per character on the last 10% of {args.text}")
    print(f"gpt2-tf generate --model {args.out.resolve()} generates text with it")


def train(GPT2: type, hparams: "gpt2_tf.HParams", ids: list[int], val_ids: list[int], args: argparse.Namespace):
    """Train a model on shuffled windows of `ids`, print its loss on `val_ids` after each epoch, and save it."""
    import keras

    from gpt2_tf.data.dataset import IGNORED, windows

    keras.utils.set_random_seed(args.seed)
    model = GPT2(hparams, dtype="mixed_bfloat16")  # the weights stay float32; 25% faster

    dataset = windows(ids, args.n_ctx, args.batch_size, seed=args.seed)
    val_dataset = windows(val_ids, args.n_ctx, args.batch_size)

    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, args.steps, warmup_target=args.learning_rate, warmup_steps=args.steps // 20
    )
    optimizer = keras.optimizers.AdamW(schedule, weight_decay=0.1, beta_2=0.99, global_clipnorm=1.0)
    optimizer.exclude_from_weight_decay(var_names=["(^|/)[bg](:0)?$"])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=IGNORED)
    # XLA makes a step slower on a CPU: in bfloat16 it takes twice as long.
    model.compile(optimizer=optimizer, loss=loss, jit_compile=False)
    epochs = math.ceil(args.steps / 250)
    steps = args.steps // epochs
    model.fit(dataset, epochs=epochs, steps_per_epoch=steps, validation_data=val_dataset, shuffle=False)
    model.save_checkpoint(args.out)


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
