"""Measures generation, side by side with the peers that are installed (transformers, keras-nlp), as a table.

    python examples/benchmark.py generate --size 124M
    python examples/benchmark.py train --size 124M
    python examples/benchmark.py serve --size 124M      # an export, side by side with the model that it was made of
    python examples/benchmark.py memory --size 1558M    # what loading, generating and a training step take of it
    python examples/benchmark.py load --size 124M       # the time and memory that weights take to load
    python examples/benchmark.py workers --size 124M    # training by one process of one core, and by two

All models have random weights. Each line is measured in every round, in turn, and the table has the medians: machines
drift, so only the ratios within one run mean something. Each library has a process of its own, as the threads of one
would wait upon the other's. The limit is what reading all weights once a token allows, at the rate at which this
machine sums a large tensor. Then each library's time from the start of a process to the first token, from saved
weights, and this one's memory.
"""

import argparse
import json
import multiprocessing
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import gpt2_tf
from gpt2_tf.hparams import SIZES

PROMPT = 16
CALLS = 200
NETWORKS = (1, 10, 100)  # Gbit/s
FIRST_TOKEN = {
    "gpt2_tf": """
import sys
import gpt2_tf
model = gpt2_tf.GPT2.from_checkpoint(sys.argv[1])
tokens = gpt2_tf.sample_sequence(model, length=1, context=list(range(16)), temperature=0)
print(tokens.numpy())
""",
    "transformers": """
import sys, torch, transformers
model = transformers.GPT2LMHeadModel.from_pretrained(sys.argv[1])
tokens = torch.arange(16)[None]
tokens = model.generate(tokens, attention_mask=tokens >= 0, max_new_tokens=1, do_sample=False, pad_token_id=0)
print(tokens.numpy())
""",
}
# One of COUNT that train together, each on a core of its own; the chief says the seconds of each step.
WORKER = """
import json, os, sys, time
size, window, rows, steps, count = sys.argv[1], *map(int, sys.argv[2:])
index = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[index]})
import gpt2_tf
gpt2_tf.GPT2
import keras, numpy as np
from gpt2_tf import dataset, replicas, train
strategy = replicas.make_strategy("multi-worker" if count > 1 else None)
hparams = gpt2_tf.HParams.from_size(size)
with strategy.scope():
    model = gpt2_tf.GPT2(hparams)
    model.compile(train.adamw(1e-4, steps))
ids = np.random.default_rng(0).integers(0, hparams.n_vocab, 100 * window)
part = dataset.ReplicaSlice(index, 1, count)
data = strategy.distribute_datasets_from_function(
    lambda _: dataset.windows(ids, window, rows * count, seed=0, replicas=part))
ends = []
note = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: ends.append(time.perf_counter()))
model.fit(data, steps_per_epoch=steps + 1, callbacks=[note], verbose=0, shuffle=False)
if replicas.is_chief(strategy):
    print(json.dumps(np.diff(ends).tolist()))
"""


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def ours(hparams: "gpt2_tf.HParams", prompt: list[int], length: int) -> dict[str, tuple[int, Callable]]:
    model = gpt2_tf.GPT2(hparams)
    # Logits that spread as a trained model's do: of near equal ones, top-p 0.9 would keep nearly all.
    model.ln_f.g.assign(np.full(hparams.n_embd, 4 / (0.02 * hparams.n_embd**0.5)))

    def sample(batch: int, **settings) -> Callable:
        return lambda: gpt2_tf.sample_sequence(
            model, length=length, context=prompt, batch_size=batch, seed=1, **settings
        ).numpy()

    return {
        "gpt2_tf, greedy": (1, sample(1, temperature=0)),
        "gpt2_tf, temperature 1": (1, sample(1)),
        "gpt2_tf, top-k 40": (1, sample(1, top_k=40)),
        "gpt2_tf, top-p 0.9": (1, sample(1, top_p=0.9)),
        "gpt2_tf, greedy, batch 8": (8, sample(8, temperature=0)),
    }


def lm_head_model(hparams: "gpt2_tf.HParams", **settings):
    """transformers' model, with random weights."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(n_embd=hparams.n_embd, n_head=hparams.n_head, n_layer=hparams.n_layer, **settings)
    return GPT2LMHeadModel(config)


def transformers(hparams: "gpt2_tf.HParams", prompt: list[int], length: int) -> dict[str, tuple[int, Callable]]:
    import torch

    model = lm_head_model(hparams).eval()

    def generate(batch: int) -> Callable:
        tokens = torch.tensor([prompt] * batch)
        return lambda: model.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            min_new_tokens=length,
            max_new_tokens=length,
            do_sample=False,
            pad_token_id=0,
        )

    return {
        "transformers, greedy": (1, generate(1)),
        "transformers, greedy, batch 8": (8, generate(8)),
    }


def causal_lm(hparams: "gpt2_tf.HParams"):
    """KerasNLP's model, with random weights."""
    import keras_hub

    backbone = keras_hub.models.GPT2Backbone(
        vocabulary_size=hparams.n_vocab,
        num_layers=hparams.n_layer,
        num_heads=hparams.n_head,
        hidden_dim=hparams.n_embd,
        intermediate_dim=4 * hparams.n_embd,
        dropout=0,
        max_sequence_length=hparams.n_ctx,
    )
    return keras_hub.models.GPT2CausalLM(backbone, preprocessor=None)


def keras_nlp(hparams: "gpt2_tf.HParams", prompt: list[int], length: int) -> dict[str, tuple[int, Callable]]:
    model = causal_lm(hparams)
    model.compile(sampler="greedy", jit_compile=False)

    def generate(batch: int) -> Callable:
        tokens = np.zeros([batch, PROMPT + length], np.int32)
        tokens[:, :PROMPT] = prompt
        mask = np.arange(PROMPT + length)[None] < PROMPT
        inputs = {"token_ids": tokens, "padding_mask": np.tile(mask, [batch, 1])}
        return lambda: model.generate(inputs, stop_token_ids=None)

    return {
        "KerasNLP, greedy": (1, generate(1)),
        "KerasNLP, greedy, batch 8": (8, generate(8)),
    }


def memory(*_) -> dict[str, tuple[int, Callable]]:
    """Sums 1 GB."""
    import tensorflow as tf

    numbers = tf.ones([2**28])
    total = tf.function(tf.reduce_sum)
    return {"memory": (1, lambda: total(numbers).numpy())}


def save(library: str, hparams: "gpt2_tf.HParams", folder: str) -> None:
    """Writes a model with random weights as the library's own files."""
    if library == "gpt2_tf":
        gpt2_tf.GPT2(hparams).save_checkpoint(folder)
    else:
        lm_head_model(hparams).save_pretrained(folder)


def first_tokens(hparams: "gpt2_tf.HParams", libraries: list[str], rounds: int, connection) -> None:
    """Sends the libraries' seconds from a process's start to the first token, medians; then our own memory's use."""
    took = {library: [] for library in libraries}
    with tempfile.TemporaryDirectory() as folder:
        for library in libraries:
            save(library, hparams, str(Path(folder, library)))
        for _ in range(rounds + 1):
            for library in libraries:
                command = [sys.executable, "-c", FIRST_TOKEN[library], str(Path(folder, library))]
                took[library].append(
                    seconds(lambda command=command: subprocess.run(command, check=True, capture_output=True))
                )
        # The first reads the files from the disk.
        connection.send({library: statistics.median(values[1:]) for library, values in took.items()})
        context = multiprocessing.get_context("spawn")
        process = context.Process(target=peaks, args=(str(Path(folder, "gpt2_tf")), hparams, connection))
        process.start()
        process.join()


def peak() -> float:
    """MB of memory that this process held at most."""
    if sys.platform == "linux":  # whose ru_maxrss begins with that of the process which started this one
        (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def peaks(folder: str, hparams: "gpt2_tf.HParams", connection) -> None:
    """Sends the peaks of memory: with TensorFlow imported, after a first text, and after many more."""
    import tensorflow as tf

    tf.constant(0)
    found = [peak()]
    model = gpt2_tf.GPT2.from_checkpoint(folder)

    def sample(length: int, seed: int):
        gpt2_tf.sample_sequence(model, length=length, context=list(range(PROMPT)), top_k=40, seed=seed)

    sample(128, 0)
    found.append(peak())
    for seed in range(CALLS):
        sample(8, seed)
    connection.send([*found, peak()])


def work(connection, make: Callable, *arguments) -> None:
    """A library's process: says what it has, then takes names and says how many seconds each took."""
    try:
        lines = make(*arguments)
    except ImportError as error:
        connection.send(error.name)
        return
    connection.send({name: batch for name, (batch, _) in lines.items()})
    while name := connection.recv():
        connection.send(seconds(lines[name][1]))
    connection.send(peak())


def start(make: Callable, *arguments) -> tuple[multiprocessing.Process, Any, dict[str, int]]:
    """A library's process, the connection to it, and what it has; nothing where it isn't installed."""
    context = multiprocessing.get_context("spawn")
    connection, theirs = context.Pipe()
    process = context.Process(target=work, args=(theirs, make, *arguments), daemon=True)
    process.start()
    answer = connection.recv()
    if isinstance(answer, str):
        print(f"left out: {answer} is not installed")
        answer = {}
    return process, connection, answer


def in_turn(batches: dict[str, int], connections: dict[str, Any], length: int, rounds: int) -> dict[str, list[float]]:
    """The tokens a second of each line, round by round."""
    rates = {name: [] for name in batches}
    with tqdm(total=len(rates) * (rounds + 1)) as bar:
        for round in range(rounds + 1):  # the first compiles
            for name, batch in batches.items():
                bar.set_description(name)
                connections[name].send(name)
                took = connections[name].recv()
                if round:
                    rates[name].append(batch * length / took)
                bar.update()
    return rates


def generate(args: argparse.Namespace) -> None:
    hparams = gpt2_tf.HParams.from_size(args.size)
    prompt = np.random.default_rng(0).integers(0, hparams.n_vocab, PROMPT).tolist()
    context = multiprocessing.get_context("spawn")
    batches, connections, processes = {}, {}, []
    for make in (memory, ours, transformers, keras_nlp):
        process, connection, answer = start(make, hparams, prompt, args.length)
        processes.append(process)
        batches |= answer
        connections |= dict.fromkeys(answer, connection)
    rates = in_turn(batches, connections, args.length, args.rounds)
    limits = [rate / args.length * 2**30 / (4 * hparams.n_params) for rate in rates.pop("memory")]
    limit = statistics.median(limits)
    print(f"{args.size}, float32, {PROMPT} prompt tokens and {args.length} new, median of {args.rounds} rounds")
    print(f"{'':32}{'tokens/s':>10}{'of the limit':>14}{'of transformers':>17}")
    print(f"{'the limit at batch 1':32}{limit:10.1f}")
    for name, values in rates.items():
        rate, batch = statistics.median(values), batches[name]
        peer = rates.get("transformers, greedy" + ", batch 8" * (batch == 8))
        ratio = f"{rate / statistics.median(peer):17.2f}" if peer else ""
        print(f"{name:32}{rate:10.1f}{rate / batch / limit:14.2f}{ratio}")
    for process in processes:
        process.terminate()  # so that each of the following is alone
    libraries = ["gpt2_tf"] + ["transformers"] * ("transformers, greedy" in rates)
    connection, theirs = context.Pipe()
    context.Process(target=first_tokens, args=(hparams, libraries, args.rounds, theirs)).start()
    print()
    for library, took in connection.recv().items():
        print(f"{library + ', from start to first token':42}{took:10.2f} s")
    imported, first, more = connection.recv()
    print()
    cache = 8 * hparams.n_layer * hparams.n_embd * (PROMPT + 127) / 2**20
    print(f"{'memory, MB: TensorFlow imported':42}{imported:10.0f}")
    print(f"{'the weights':42}{4 * hparams.n_params / 2**20:10.0f}")
    print(f"{'the cache':42}{cache:10.0f}")
    print(f"{'at most, with a first text of 128 tokens':42}{first:10.0f}")
    print(f"{f'with {CALLS} more texts':42}{more:10.0f}")


def rows_of(hparams: "gpt2_tf.HParams", shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and their targets, int32 [batch, window] each."""
    ids = np.random.default_rng(0).integers(0, hparams.n_vocab, [shape[0], shape[1] + 1], np.int32)
    return ids[:, :-1], ids[:, 1:]


def train_ours(hparams: "gpt2_tf.HParams", shape: tuple[int, int], precision: str) -> dict[str, tuple[int, Callable]]:
    from gpt2_tf.training import train

    model = gpt2_tf.GPT2(hparams, dtype=train.POLICIES[precision])
    model.compile(train.adamw(5e-5, 1000))
    tokens, targets = rows_of(hparams, shape)
    return {f"gpt2_tf, {precision}": (tokens.size, lambda: model.train_on_batch(tokens, targets))}


def train_keras_nlp(
    hparams: "gpt2_tf.HParams", shape: tuple[int, int], precision: str
) -> dict[str, tuple[int, Callable]]:
    import keras

    keras.config.set_dtype_policy("float32" if precision == "float32" else f"mixed_{precision}")
    model = causal_lm(hparams)
    model.compile(
        optimizer=keras.optimizers.AdamW(5e-5, global_clipnorm=1.0),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=False,
    )
    tokens, targets = rows_of(hparams, shape)
    inputs = {"token_ids": tokens, "padding_mask": np.ones(shape, bool)}
    return {f"KerasNLP, {precision}": (tokens.size, lambda: model.train_on_batch(inputs, targets))}


def train_transformers(
    hparams: "gpt2_tf.HParams", shape: tuple[int, int], precision: str
) -> dict[str, tuple[int, Callable]]:
    import torch

    model = lm_head_model(hparams, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0).train()
    optimizer = torch.optim.AdamW(model.parameters(), 5e-5)
    tokens, targets = (torch.tensor(ids).long() for ids in rows_of(hparams, shape))

    def step():
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            logits = model(tokens).logits
        torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return {f"transformers, {precision}": (tokens.numel(), step)}


def limit(hparams: "gpt2_tf.HParams", shape: tuple[int, int], precision: str) -> dict[str, tuple[float, Callable]]:
    """As many tokens as would take as long as a large matrix product, were all the time spent on such."""
    import tensorflow as tf

    from gpt2_tf.training.flops import flops_per_token

    size = 2048
    matrix = tf.cast(tf.random.normal([size, size]), precision)
    product = tf.function(lambda: tf.reduce_sum(tf.matmul(matrix, matrix)))
    return {f"the limit, {precision}": (2 * size**3 / flops_per_token(hparams, shape[1]), lambda: product().numpy())}


def train(args: argparse.Namespace) -> None:
    hparams = gpt2_tf.HParams.from_size(args.size)
    print(f"{args.size}, {args.batch_size} x {args.window} tokens a step, median of {args.rounds} rounds")
    print(f"{'':26}{'tokens/s':>10}{'of KerasNLP':>13}{'of transformers':>17}{'first step':>12}{'at most, MB':>13}")
    for precision in args.precision:
        workers, rates, first = {}, {}, {}
        for make in (limit, train_ours, train_keras_nlp, train_transformers):
            begun = time.perf_counter()
            _, connection, answer = start(make, hparams, (args.batch_size, args.window), precision)
            if not answer:
                continue
            ((name, tokens),) = answer.items()
            connection.send(name)
            connection.recv()
            first[name] = time.perf_counter() - begun
            workers[name] = connection, tokens
            rates[name] = []
        for _ in tqdm(range(args.rounds), desc=precision):
            for name, (connection, tokens) in workers.items():
                connection.send(name)
                rates[name].append(tokens / connection.recv())
        for name, (connection, _) in workers.items():
            connection.send(None)
            rate = statistics.median(rates[name])
            peers = (rates.get(f"{library}, {precision}") for library in ("KerasNLP", "transformers"))
            ratios = [f"{rate / statistics.median(peer):.2f}" if peer else "" for peer in peers]
            line = f"{name:26}{rate:10.1f}{ratios[0]:>13}{ratios[1]:>17}{first[name]:10.1f} s{connection.recv():13.0f}"
            print(line if "limit" not in name else line[:36], flush=True)


def export(hparams: "gpt2_tf.HParams", vocabulary: str, place: str) -> None:
    """Writes a model with random weights, and its export; in a process of its own, whose memory is then free."""
    from gpt2_tf.pretrained.load import load_encoder
    from gpt2_tf.serving import saved_model

    model, enc = gpt2_tf.GPT2(hparams), load_encoder(vocabulary)
    model.save_checkpoint(place)
    enc.save(place)
    saved_model.export(model, enc, Path(place, "export"))


def in_process(place: str, length: int) -> dict[str, tuple[int, Callable]]:
    model, enc = gpt2_tf.load(place)

    def sample(batch: int) -> Callable:
        return lambda: gpt2_tf.generate(model, enc, [" the" * PROMPT] * batch, length=length, temperature=0)

    return {f"in process, batch {batch}": (batch, sample(batch)) for batch in (1, 8)}


def exported(place: str, length: int) -> dict[str, tuple[int, Callable]]:
    import tensorflow as tf

    loaded = tf.saved_model.load(str(Path(place, "export", "1")))

    def sample(batch: int) -> Callable:
        inputs = {
            "text": tf.constant([" the" * PROMPT] * batch),
            "length": tf.fill([batch], length),
            "temperature": tf.zeros([batch]),
            "top_k": tf.zeros([batch], tf.int32),
            "top_p": tf.ones([batch]),
            "seed": tf.zeros([batch], tf.int64),
            "stop": tf.fill([batch], ""),
        }
        return lambda: loaded.signatures["generate"](**inputs)["text"].numpy()

    return {f"export, batch {batch}": (batch, sample(batch)) for batch in (1, 8)}


def export_peaks(place: str, connection) -> None:
    """Sends the peaks of memory: with TensorFlow imported, with the export loaded, and after a text."""
    import tensorflow as tf

    tf.constant(0)
    found = [peak()]
    loaded = tf.saved_model.load(str(Path(place, "export", "1")))
    found.append(peak())
    loaded.signatures["serving_default"](tf.constant([" the" * PROMPT]))
    connection.send([*found, peak()])


def serve(args: argparse.Namespace) -> None:
    hparams = gpt2_tf.HParams.from_size(args.size)
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as place:
        begun = time.perf_counter()
        maker = context.Process(target=export, args=(hparams, args.vocabulary or args.size, place))
        maker.start()
        maker.join()
        print(f"exported in {time.perf_counter() - begun:.0f} s, from the start of a process")
        batches, connections = {}, {}
        for make in (in_process, exported):
            _, connection, answer = start(make, place, args.length)
            batches |= answer
            connections |= dict.fromkeys(answer, connection)
        rates = in_turn(batches, connections, args.length, args.rounds)
        for connection in set(connections.values()):
            connection.send(None)  # so that the next is alone
        found = alone(export_peaks, place)
    rates = {name: statistics.median(values) for name, values in rates.items()}
    print(f"{args.size}, float32, {PROMPT} prompt tokens and {args.length} new, median of {args.rounds} rounds")
    print(f"{'':32}{'tokens/s':>10}{'of in process':>15}{'of batch 1':>12}")
    for name, rate in rates.items():
        kind, batch = name.split(",")
        print(
            f"{name:32}{rate:10.1f}{rate / rates[f'in process,{batch}']:15.2f}{rate / rates[f'{kind}, batch 1']:12.2f}"
        )
    print()
    names = ("memory, MB: TensorFlow imported", "the export loaded", "a text written")
    for name, value in zip(names, found, strict=True):
        print(f"{name:32}{value:10.0f}")
    print(f"{'the weights':32}{4 * hparams.n_params / 2**20:10.0f}")


def alone(function: Callable, *arguments):
    """What a function sends over the connection that it gets last, from a process of its own."""
    context = multiprocessing.get_context("spawn")
    connection, theirs = context.Pipe()
    process = context.Process(target=function, args=(*arguments, theirs))
    process.start()
    theirs.close()  # so that one that is killed for its memory doesn't leave this one waiting
    answer = connection.recv()
    process.join()
    return answer


def measure(act: Callable, *arguments) -> None:
    """Sends what `act` gives, and the process's memory in MB: with TensorFlow imported, and at most."""
    import tensorflow as tf

    *arguments, connection = arguments
    tf.constant(0)
    gpt2_tf.GPT2  # noqa: B018
    imported = peak()
    connection.send((act(*arguments), imported, peak()))


def save_openai(folder: str, hparams: "gpt2_tf.HParams") -> float:
    return seconds(lambda: gpt2_tf.GPT2(hparams).save_checkpoint(folder))


def save_both(folder: str, hparams: "gpt2_tf.HParams") -> None:
    model = gpt2_tf.GPT2(hparams)
    model.save_checkpoint(folder)
    model.save_pretrained(Path(folder, "hf"))


def read(folder: str) -> float:
    """Reads a checkpoint's tensors one by one as TensorFlow does, which checks their CRCs, and keeps none."""
    import tensorflow as tf

    from gpt2_tf.weights.checkpoint import latest_checkpoint
    from gpt2_tf.weights.tensor_bundle import read_index

    prefix = latest_checkpoint(folder)

    def restore():
        for name in read_index(f"{prefix}.index"):
            tf.raw_ops.RestoreV2(prefix=str(prefix), tensor_names=[name], shape_and_slices=[""], dtypes=[tf.float32])

    return seconds(restore)


def load_openai(folder: str) -> float:
    return seconds(lambda: gpt2_tf.GPT2.from_checkpoint(folder))


def load_hf(folder: str) -> float:
    return seconds(lambda: gpt2_tf.GPT2.from_pretrained(Path(folder, "hf")))


def load(args: argparse.Namespace) -> None:
    hparams = gpt2_tf.HParams.from_size(args.size)
    acts = {"reading, CRCs checked": read, "from_checkpoint": load_openai, "from_pretrained": load_hf}
    with tempfile.TemporaryDirectory() as folder:
        alone(measure, save_both, folder, hparams)
        found = {name: [] for name in acts}
        for _ in range(args.rounds + 1):
            for name, act in acts.items():
                took, imported, most = alone(measure, act, folder)
                found[name].append((took, most - imported))
    weights = 4 * hparams.n_params / 2**20
    print(f"{args.size}, {weights:.0f} MB, median of {args.rounds} rounds, each in a process of its own")
    print(f"{'':24}{'seconds':>10}{'of reading':>14}{'memory, of the weights':>25}")
    # The first round may read the files from the disk.
    medians = {
        name: [statistics.median(value) for value in zip(*values[1:], strict=True)] for name, values in found.items()
    }
    for name, (took, grown) in medians.items():
        print(f"{name:24}{took:10.2f}{took / medians['reading, CRCs checked'][0]:14.2f}{grown / weights:25.2f}")


def write(folder: str, dtype: str, length: int) -> str:
    model = gpt2_tf.GPT2.from_checkpoint(folder, dtype=dtype)

    def sample():
        gpt2_tf.sample_sequence(model, length=length, context=list(range(PROMPT)), top_k=40, seed=1)

    sample()  # compiles
    return f"{length / seconds(sample):.2f} tokens/s"


def train_step(folder: str, window: int) -> str:
    from gpt2_tf.training import train

    model = gpt2_tf.GPT2.from_checkpoint(folder, remat=True, lora_rank=8, dtype="mixed_bfloat16")
    model.compile(train.adamw(5e-4, 10))
    ids = np.random.default_rng(0).integers(0, model.hparams.n_vocab, [1, window + 1])
    first, second = (seconds(lambda: model.train_on_batch(ids[:, :-1], ids[:, 1:])) for _ in range(2))
    return f"{first:.0f} s, then {second:.1f} s a step"


def footprint(args: argparse.Namespace) -> None:
    hparams = gpt2_tf.HParams.from_size(args.size)
    weights = 4 * hparams.n_params / 1e9
    print(f"{args.size}, random weights, {weights:.2f} GB in float32; each in a process of its own")
    print(f"{'':60}{'GB at most':>10}{'beyond TensorFlow':>19}{'of the weights':>16}")
    with tempfile.TemporaryDirectory(dir=args.dir) as folder:
        for name, act, *arguments in (
            ("save", save_openai, hparams),
            ("load", load_openai),
            (f"generate {args.length} tokens, float32", write, "float32", args.length),
            (f"generate {args.length} tokens, bfloat16", write, "bfloat16", args.length),
            (f"--remat --lora-rank 8 --precision bfloat16, 1 x {args.window}", train_step, args.window),
        ):
            said, imported, most = alone(measure, act, folder, *arguments)
            said = said if isinstance(said, str) else f"{said:.0f} s"
            imported, most = (size * 2**20 / 1e9 for size in (imported, most))
            beyond = most - imported
            print(f"{name:60}{most:10.2f}{beyond:19.2f}{beyond / weights:16.2f}   {said}", flush=True)


def workers(args: argparse.Namespace) -> None:
    import workers

    counts = (1, 2)
    steps = {count: [] for count in counts}
    for _ in range(args.rounds):
        for count in counts:
            settings = [args.size, *map(str, (args.window, args.rows, args.steps, count))]
            started = workers.start(count, [sys.executable, "-c", WORKER, *settings], stdout=subprocess.PIPE, text=True)
            answers = [worker.communicate()[0] for worker in started]
            if any(worker.returncode for worker in started):
                raise SystemExit("a worker failed")
            steps[count] += json.loads(answers[0])
    tokens = args.rows * args.window
    rates = {count: count * tokens / statistics.median(took) for count, took in steps.items()}
    print(f"{args.size}, float32, {args.rows} rows of {args.window} tokens a process and step, a core a process")
    print(f"{'':32}{'tokens/s':>10}{'of one process':>16}")
    for count, rate in rates.items():
        print(f"{f'{count} process' + 'es' * (count > 1):32}{rate:10.1f}{rate / rates[1]:16.2f}")
    print("\nGradients: the seconds that a ring all-reduce, 2 (n - 1) / n times 4 bytes a weight, keeps a network busy")
    print(f"{'':32}{'bytes':>10}" + "".join(f"{f'{rate} Gbit/s':>16}" for rate in NETWORKS))
    for size in ("124M", "1558M"):
        sent = 4 * gpt2_tf.HParams.from_size(size).n_params
        for n in (2, 8):
            took = "".join(f"{8 * sent * 2 * (n - 1) / n / rate / 1e9:16.2f}" for rate in NETWORKS)
            print(f"{f'{size}, {n} workers':32}{sent:10.2e}{took}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    sub = commands.add_parser("generate", help="tokens a second, time to the first token, memory")
    sub.add_argument("--size", choices=SIZES, default="124M")
    sub.add_argument("--length", type=int, default=128, help="new tokens (default: 128)")
    sub.add_argument("--rounds", type=int, default=5, help="how often each is measured (default: 5)")
    sub.set_defaults(run=generate)
    sub = commands.add_parser("train", help="tokens a second, time to the first step, memory")
    sub.add_argument("--size", choices=SIZES, default="124M")
    sub.add_argument("--batch-size", type=int, default=2, help="rows a step (default: 2)")
    sub.add_argument("--window", type=int, default=256, help="tokens a row (default: 256)")
    sub.add_argument("--precision", nargs="+", choices=["float32", "bfloat16"], default=["float32", "bfloat16"])
    sub.add_argument("--rounds", type=int, default=5, help="how often each is measured (default: 5)")
    sub.set_defaults(run=train)
    sub = commands.add_parser("serve", help="tokens a second of an export")
    sub.add_argument("--size", choices=SIZES, default="124M")
    sub.add_argument(
        "--vocabulary", metavar="DIR", help="with encoder.json and vocab.bpe (default: the size's, fetched)"
    )
    sub.add_argument("--length", type=int, default=64, help="new tokens (default: 64)")
    sub.add_argument("--rounds", type=int, default=5, help="how often each is measured (default: 5)")
    sub.set_defaults(run=serve)
    sub = commands.add_parser("memory", help="memory that loading, generating and a training step take")
    sub.add_argument("--size", choices=SIZES, default="1558M")
    sub.add_argument("--length", type=int, default=32, help="new tokens (default: 32)")
    sub.add_argument("--window", type=int, default=512, help="tokens of the step (default: 512)")
    sub.add_argument("--dir", help="where there is room for the weights' files (default: that of temporary files)")
    sub.set_defaults(run=footprint)
    sub = commands.add_parser("load", help="time and memory to load weights")
    sub.add_argument("--size", choices=SIZES, default="124M")
    sub.add_argument("--rounds", type=int, default=5, help="how often each is measured (default: 5)")
    sub.set_defaults(run=load)
    sub = commands.add_parser("workers", help="training by one process and by two, a core each; networks")
    sub.add_argument("--size", choices=SIZES, default="124M")
    sub.add_argument("--window", type=int, default=256, help="tokens a row (default: 256)")
    sub.add_argument("--rows", type=int, default=2, help="a process and step (default: 2)")
    sub.add_argument("--steps", type=int, default=5, help="measured, after a first (default: 5)")
    sub.add_argument("--rounds", type=int, default=3, help="how often each is measured (default: 3)")
    sub.set_defaults(run=workers)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
