"""Fine-tune a model on one text file, with Keras alone: `python examples/finetune.py text.txt my-model`.

`gpt2-tf train` does more: it reads many files, saves checkpoints, and resumes a run that was stopped.
"""

import argparse

import gpt2_tf

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("text", help="a UTF-8 text file")
parser.add_argument("out", help="the folder to write the model to")
parser.add_argument("--model", default="124M", help="the model to start from (default: 124M)")
parser.add_argument("--steps", type=int, default=500)
parser.add_argument("--window", type=int, default=256)
args = parser.parse_args()

model, enc = gpt2_tf.load(args.model)
from gpt2_tf import callbacks, dataset, train  # noqa: E402 - after `load`, which imports TensorFlow without its log

with open(args.text, encoding="utf-8-sig", newline="") as file:  # as `gpt2-tf train` reads it
    ids = [*enc.encode(file.read()), enc.end_of_text]
cut = len(ids) * 9 // 10

model.compile(train.adamw(5e-5, args.steps, warmup_steps=args.steps // 10))  # without a loss, GPT2 uses its own
model.fit(
    dataset.windows(ids[:cut], args.window, batch_size=4, seed=0),
    validation_data=dataset.windows(ids[cut:], args.window, batch_size=4),
    steps_per_epoch=args.steps // (epochs := min(5, args.steps)),
    epochs=epochs,
    shuffle=False,  # the windows are shuffled already
    callbacks=[callbacks.StopAtNaN(), callbacks.Best(args.out, patience=2)],
)
enc.save(args.out)
