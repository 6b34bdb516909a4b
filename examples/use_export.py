"""Ask an export from Python. TensorFlow is enough; gpt2_tf is not needed.

gpt2-tf export gpt2
python examples/use_export.py gpt2/1 "ROMEO:" "JULIET:"
"""

import sys

import tensorflow as tf

folder, *texts = sys.argv[1:]
gpt2 = tf.saved_model.load(folder)
# Each input is a list: one value per text, or one value for all. An input that is left out has its default.
answer = gpt2.generate(text=texts, length=[20], temperature=[0.8], seed=list(range(len(texts))))
for text, new_text, reason in zip(texts, answer["text"].numpy(), answer["finish_reason"].numpy(), strict=True):
    print(f"{text}{new_text.decode()}\n[{reason.decode()}]")
