"""Measures speed and memory, side by side with transformers and KerasHub where they are installed.

    python examples/benchmark.py generate --size 124M   # tokens/s of sampling, time to the first token, memory
    python examples/benchmark.py train --size 124M      # tokens/s of training, time to the first step, memory
    python examples/benchmark.py serve --size 124M      # an export, beside the model that it was made from
    python examples/benchmark.py load --size 124M       # time and memory to load weights
    python examples/benchmark.py memory --size 1558M    # memory of loading, sampling and a training step
    python examples/benchmark.py workers --size 124M    # training by one process and by two, with one core each

All models have random weights. Each library has a process of its own, because threads of one library would wait for the
other's. The libraries take turns in every round, and each table has medians over the rounds. Machines drift, so compare
only figures of one run.
"""

import argparse
import datetime
import importlib.metadata
import json
import multiprocessing
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

import gpt2_tf
from gpt2_tf.hparams import SIZES, HParams

PROMPT_TOKENS = 16
MORE_TEXTS = 200  # sampled before memory is looked at once more
NETWORKS = (1, 10, 100)  # Gbit/s
# Programs that load saved weights and print one token. Their argument is the folder.
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
# One of COUNT processes that train together, each on a core of its own. The first prints the seconds of each step.
WORKER = """
import json, os, sys, time
size, window, rows, steps, count = sys.argv[1], *map(int, sys.argv[2:])
index = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[index]})
import gpt2_tf
gpt2_tf.GPT2
import keras, numpy as np
from gpt2_tf import dataset, train
from gpt2_tf.model import distribute
strategy = distribute.make_strategy("multi-worker" if count > 1 else None)
hparams = gpt2_tf.HParams.from_size(size)
with strategy.scope():
    model = gpt2_tf.GPT2(hparams)
    model.compile(train.adamw(1e-4, steps))
ids = np.random.default_rng(0).integers(0, hparams.n_vocab, 100 * window)
part = dataset.ReplicaSlice(index, 1, count)
batches = strategy.distribute_datasets_from_function(
    lambda _: dataset.windows(ids, window, rows * count, seed=0, replicas=part))
ends = []
note = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: ends.append(time.perf_counter()))
model.fit(batches, steps_per_epoch=steps + 1, callbacks=[note], verbose=0, shuffle=False)
if distribute.is_chief(strategy):
    print(json.dumps(np.diff(ends).tolist()))
"""


# Processes that measure


class Job(NamedTuple):
    """Something to time: one call of `run` processes this many tokens."""

    tokens: float
    run: Callable[[], object]


class Worker(NamedTuple):
    """A process with the jobs of one library: the tokens of each job by its name."""

    process: multiprocessing.Process
    connection: Any
    tokens: dict[str, float]

    def seconds(self, name: str) -> float:
        """Run a job once and return its time."""
        self.connection.send(name)
        return self.connection.recv()

    def stop(self) -> float:
        """End the process. Return its peak memory in MB."""
        self.connection.send(None)
        peak = self.connection.recv()
        self.process.join()
        return peak


def seconds_of(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def peak_memory() -> float:
    """Return the largest memory that this process has held, in MB of 2**20 bytes."""
    if sys.platform == "linux":  # its ru_maxrss starts from the process that started this one
        (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def run_jobs(connection, make_jobs: Callable[..., dict[str, Job]], *arguments) -> None:
    """The main function of a worker: send the jobs' tokens, then run each job that is asked for and send its time."""
    try:
        jobs = make_jobs(*arguments)
    except ImportError as error:
        connection.send(error.name)
        return
    connection.send({name: job.tokens for name, job in jobs.items()})
    while name := connection.recv():
        connection.send(seconds_of(jobs[name].run))
    connection.send(peak_memory())


def start_worker(make_jobs: Callable[..., dict[str, Job]], *arguments) -> Worker | None:
    """Start a worker. None, with a line on stdout, if its library is not installed."""
    context = multiprocessing.get_context("spawn")
    connection, theirs = context.Pipe()
    process = context.Process(target=run_jobs, args=(theirs, make_jobs, *arguments), daemon=True)
    process.start()
    answer = connection.recv()
    if isinstance(answer, str):
        print(f"left out: {answer} is not installed")
        return None
    return Worker(process, connection, answer)


def call_in_process(function: Callable, *arguments) -> Any:
    """Call a function in a new process, so that it measures its own memory alone, and return its result."""
    context = multiprocessing.get_context("spawn")
    connection, theirs = context.Pipe()
    process = context.Process(target=_send_result, args=(theirs, function, *arguments))
    process.start()
    theirs.close()  # so that `recv` raises an error if the process is killed for its memory
    result = connection.recv()
    process.join()
    return result


def _send_result(connection, function: Callable, *arguments) -> None:
    connection.send(function(*arguments))


def measure_in_turn(workers: list[Worker], rounds: int) -> dict[str, list[float]]:
    """Return the tokens per second of each job in each round. A first round, which compiles, is left out."""
    owners = {name: worker for worker in workers for name in worker.tokens}
    rates = {name: [] for name in owners}
    with tqdm(total=len(rates) * (rounds + 1)) as bar:
        for round in range(rounds + 1):
            for name, worker in owners.items():
                bar.set_description(name)
                seconds = worker.seconds(name)
                if round:
                    rates[name].append(worker.tokens[name] / seconds)
                bar.update()
    return rates


# Models with random weights


def transformers_model(hparams: HParams, **settings):
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(n_embd=hparams.n_embd, n_head=hparams.n_head, n_layer=hparams.n_layer, **settings)
    return GPT2LMHeadModel(config)


def keras_hub_model(hparams: HParams):
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


# generate


def memory_limit(hparams: HParams, prompt: list[int], length: int) -> dict[str, Job]:
    """Read 1 GiB of memory. A token at batch 1 needs all weights once, so this rate is a limit."""
    import tensorflow as tf

    numbers = tf.ones([2**28])
    total = tf.function(tf.reduce_sum)
    return {"the limit at batch 1": Job(2**30 / (4 * hparams.n_params), lambda: total(numbers).numpy())}


def sample_ours(hparams: HParams, prompt: list[int], length: int) -> dict[str, Job]:
    model = gpt2_tf.GPT2(hparams)
    # Logits as uneven as a trained model's. With almost equal logits, top-p 0.9 would keep nearly all tokens.
    model.ln_f.g.assign(np.full(hparams.n_embd, 4 / (0.02 * hparams.n_embd**0.5)))

    def sample(batch: int, **settings) -> Job:
        def run():
            gpt2_tf.sample_sequence(model, length=length, context=prompt, batch_size=batch, seed=1, **settings).numpy()

        return Job(batch * length, run)

    return {
        "gpt2_tf, greedy": sample(1, temperature=0),
        "gpt2_tf, temperature 1": sample(1),
        "gpt2_tf, top-k 40": sample(1, top_k=40),
        "gpt2_tf, top-p 0.9": sample(1, top_p=0.9),
        "gpt2_tf, greedy, batch 8": sample(8, temperature=0),
    }


def sample_transformers(hparams: HParams, prompt: list[int], length: int) -> dict[str, Job]:
    import torch

    model = transformers_model(hparams).eval()

    def sample(batch: int) -> Job:
        tokens = torch.tensor([prompt] * batch)
        settings = {"attention_mask": torch.ones_like(tokens), "do_sample": False, "pad_token_id": 0}
        settings |= {"min_new_tokens": length, "max_new_tokens": length}
        return Job(batch * length, lambda: model.generate(tokens, **settings))

    return {"transformers, greedy": sample(1), "transformers, greedy, batch 8": sample(8)}


def sample_keras_hub(hparams: HParams, prompt: list[int], length: int) -> dict[str, Job]:
    model = keras_hub_model(hparams)
    model.compile(sampler="greedy", jit_compile=False)

    def sample(batch: int) -> Job:
        tokens = np.zeros([batch, PROMPT_TOKENS + length], np.int32)
        tokens[:, :PROMPT_TOKENS] = prompt
        mask = np.arange(PROMPT_TOKENS + length)[None] < PROMPT_TOKENS
        inputs = {"token_ids": tokens, "padding_mask": np.tile(mask, [batch, 1])}
        return Job(batch * length, lambda: model.generate(inputs, stop_token_ids=None))

    return {"KerasHub, greedy": sample(1), "KerasHub, greedy, batch 8": sample(8)}


def save_for(library: str, hparams: HParams, folder: str) -> None:
    """Write a model with random weights in the library's own form."""
    if library == "gpt2_tf":
        gpt2_tf.GPT2(hparams).save_checkpoint(folder)
    else:
        transformers_model(hparams).save_pretrained(folder)


def time_to_first_token(folders: dict[str, str], rounds: int) -> dict[str, float]:
    """Return the median seconds from the start of a process to its first token, from the weights in a folder."""
    seconds = {library: [] for library in folders}
    for _ in range(rounds + 1):
        for library, folder in folders.items():
            command = [sys.executable, "-c", FIRST_TOKEN[library], folder]
            start = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            seconds[library].append(time.perf_counter() - start)
    # The first round may read the files from the disk.
    return {library: statistics.median(values[1:]) for library, values in seconds.items()}


def memory_of_sampling(folder: str) -> list[float]:
    """Return the peak memory in MB: TensorFlow imported, one text of 128 tokens written, many more texts written."""
    import tensorflow as tf

    tf.constant(0)
    peaks = [peak_memory()]
    model = gpt2_tf.GPT2.from_checkpoint(folder)

    def sample(length: int, seed: int):
        gpt2_tf.sample_sequence(model, length=length, context=list(range(PROMPT_TOKENS)), top_k=40, seed=seed)

    sample(128, 0)
    peaks.append(peak_memory())
    for seed in range(MORE_TEXTS):
        sample(8, seed)
    return [*peaks, peak_memory()]


def generate(args: argparse.Namespace) -> None:
    hparams = HParams.from_size(args.size)
    prompt = np.random.default_rng(0).integers(0, hparams.n_vocab, PROMPT_TOKENS).tolist()
    builders = (memory_limit, sample_ours, sample_transformers, sample_keras_hub)
    workers = [worker for make in builders if (worker := start_worker(make, hparams, prompt, args.length))]
    rounds = measure_in_turn(workers, args.rounds)
    for worker in workers:
        worker.stop()  # so that each of the following measurements has the machine alone
    rates = {name: statistics.median(values) for name, values in rounds.items()}
    limit = rates.pop("the limit at batch 1")
    print(f"{args.size}, float32, {PROMPT_TOKENS} prompt tokens and {args.length} new, median of {args.rounds} rounds")
    print(f"{'':32}{'tokens/s':>10}{'of the limit':>14}{'of transformers':>17}")
    print(f"{'the limit at batch 1':32}{limit:10.1f}")
    for name, rate in rates.items():
        batch = 8 if name.endswith("batch 8") else 1
        peer = rates.get("transformers, greedy" + ", batch 8" * (batch == 8))
        print(f"{name:32}{rate:10.1f}{rate / batch / limit:14.2f}" + (f"{rate / peer:17.2f}" if peer else ""))
    if args.json:
        write_rates(args, rates, limit)

    libraries = ["gpt2_tf"] + ["transformers"] * ("transformers, greedy" in rates)
    with tempfile.TemporaryDirectory() as folder:
        folders = {library: str(Path(folder, library)) for library in libraries}
        for library in libraries:
            call_in_process(save_for, library, hparams, folders[library])
        print()
        for library, seconds in time_to_first_token(folders, args.rounds).items():
            print(f"{library + ', from start to first token':42}{seconds:10.2f} s")
        imported, one_text, more_texts = call_in_process(memory_of_sampling, folders["gpt2_tf"])
    cache = 8 * hparams.n_layer * hparams.n_embd * (PROMPT_TOKENS + 127) / 2**20
    print(f"\n{'memory, MB: TensorFlow imported':42}{imported:10.0f}")
    print(f"{'the weights':42}{4 * hparams.n_params / 2**20:10.0f}")
    print(f"{'keys and values':42}{cache:10.0f}")
    print(f"{'peak with one text of 128 tokens':42}{one_text:10.0f}")
    print(f"{f'peak with {MORE_TEXTS} more texts':42}{more_texts:10.0f}")


def write_rates(args: argparse.Namespace, rates: dict[str, float], limit: float) -> None:
    """Write the tokens per second as JSON, for `docs/draw_figures.py`."""
    packages = ("tensorflow", "keras", "keras-hub", "torch", "transformers")
    measured = {
        "command": f"python examples/benchmark.py generate --size {args.size} --length {args.length} --json FILE",
        "date": datetime.date.today().isoformat(),
        "size": args.size,
        "device": f"{len(os.sched_getaffinity(0))} CPU cores, float32",
        "versions": {each.name: each.version for each in importlib.metadata.distributions() if each.name in packages},
        "limit": limit,
        "greedy": [
            {
                "library": name.partition(",")[0],
                "batch": 8 if name.endswith("batch 8") else 1,
                "tokens_per_second": rate,
            }
            for name, rate in rates.items()
            if "greedy" in name
        ],
        "sampling": {name: rate for name, rate in rates.items() if "greedy" not in name},
    }
    Path(args.json).write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")


# train


def random_rows(hparams: HParams, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return random tokens and their targets, int32 [batch, window] each."""
    ids = np.random.default_rng(0).integers(0, hparams.n_vocab, [shape[0], shape[1] + 1], np.int32)
    return ids[:, :-1], ids[:, 1:]


def matmul_limit(hparams: HParams, shape: tuple[int, int], precision: str) -> dict[str, Job]:
    """Multiply large matrices. Training at this rate of operations is a limit."""
    import tensorflow as tf

    from gpt2_tf.training.flops import flops_per_token

    size = 2048
    matrix = tf.cast(tf.random.normal([size, size]), precision)
    product = tf.function(lambda: tf.reduce_sum(tf.matmul(matrix, matrix)))
    return {f"the limit, {precision}": Job(2 * size**3 / flops_per_token(hparams, shape[1]), lambda: product().numpy())}


def train_ours(hparams: HParams, shape: tuple[int, int], precision: str) -> dict[str, Job]:
    from gpt2_tf.training import train

    model = gpt2_tf.GPT2(hparams, dtype=train.POLICIES[precision])
    model.compile(train.adamw(5e-5, 1000))
    tokens, targets = random_rows(hparams, shape)
    return {f"gpt2_tf, {precision}": Job(tokens.size, lambda: model.train_on_batch(tokens, targets))}


def train_keras_hub(hparams: HParams, shape: tuple[int, int], precision: str) -> dict[str, Job]:
    import keras

    keras.config.set_dtype_policy("float32" if precision == "float32" else f"mixed_{precision}")
    model = keras_hub_model(hparams)
    model.compile(
        optimizer=keras.optimizers.AdamW(5e-5, global_clipnorm=1.0),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=False,
    )
    tokens, targets = random_rows(hparams, shape)
    inputs = {"token_ids": tokens, "padding_mask": np.ones(shape, bool)}
    return {f"KerasHub, {precision}": Job(tokens.size, lambda: model.train_on_batch(inputs, targets))}


def train_transformers(hparams: HParams, shape: tuple[int, int], precision: str) -> dict[str, Job]:
    import torch

    model = transformers_model(hparams, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0).train()
    optimizer = torch.optim.AdamW(model.parameters(), 5e-5)
    tokens, targets = (torch.tensor(ids).long() for ids in random_rows(hparams, shape))

    def step():
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            logits = model(tokens).logits
        torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return {f"transformers, {precision}": Job(tokens.numel(), step)}


def train(args: argparse.Namespace) -> None:
    hparams = HParams.from_size(args.size)
    print(f"{args.size}, {args.batch_size} x {args.window} tokens per step, median of {args.rounds} rounds")
    print(f"{'':26}{'tokens/s':>10}{'of KerasHub':>13}{'of transformers':>17}{'first step':>12}{'peak, MB':>13}")
    for precision in args.precision:
        workers, first_step = {}, {}
        for make in (matmul_limit, train_ours, train_keras_hub, train_transformers):
            start = time.perf_counter()
            if worker := start_worker(make, hparams, (args.batch_size, args.window), precision):
                (name,) = worker.tokens
                worker.seconds(name)
                first_step[name] = time.perf_counter() - start
                workers[name] = worker
        rates = {name: [] for name in workers}
        for _ in tqdm(range(args.rounds), desc=precision):
            for name, worker in workers.items():
                rates[name].append(worker.tokens[name] / worker.seconds(name))
        rates = {name: statistics.median(values) for name, values in rates.items()}
        for name, worker in workers.items():
            peers = (rates.get(f"{library}, {precision}") for library in ("KerasHub", "transformers"))
            ratios = [f"{rates[name] / peer:.2f}" if peer else "" for peer in peers]
            line = f"{name:26}{rates[name]:10.1f}{ratios[0]:>13}{ratios[1]:>17}"
            line += f"{first_step[name]:10.1f} s{worker.stop():13.0f}"
            print(line if "limit" not in name else line[:36], flush=True)


# serve


def make_export(hparams: HParams, vocabulary: str, model_dir: str) -> None:
    """Write a model with random weights, its vocabulary, and its export."""
    from gpt2_tf.pretrained.load import load_encoder
    from gpt2_tf.serving import export

    model, enc = gpt2_tf.GPT2(hparams), load_encoder(vocabulary)
    model.save_checkpoint(model_dir)
    enc.save(model_dir)
    export(model, enc, Path(model_dir, "export"))


def sample_in_process(model_dir: str, length: int) -> dict[str, Job]:
    model, enc = gpt2_tf.load(model_dir)

    def sample(batch: int) -> Job:
        prompts = [" the" * PROMPT_TOKENS] * batch
        return Job(batch * length, lambda: gpt2_tf.generate(model, enc, prompts, length=length, temperature=0))

    return {f"in process, batch {batch}": sample(batch) for batch in (1, 8)}


def sample_export(model_dir: str, length: int) -> dict[str, Job]:
    import tensorflow as tf

    loaded = tf.saved_model.load(str(Path(model_dir, "export", "1")))

    def sample(batch: int) -> Job:
        inputs = {
            "text": tf.constant([" the" * PROMPT_TOKENS] * batch),
            "length": tf.fill([batch], length),
            "temperature": tf.zeros([batch]),
            "top_k": tf.zeros([batch], tf.int32),
            "top_p": tf.ones([batch]),
            "seed": tf.zeros([batch], tf.int64),
            "stop": tf.fill([batch], ""),
        }
        return Job(batch * length, lambda: loaded.signatures["generate"](**inputs)["text"].numpy())

    return {f"export, batch {batch}": sample(batch) for batch in (1, 8)}


def memory_of_export(model_dir: str) -> list[float]:
    """Return the peak memory in MB: TensorFlow imported, the export loaded, a text written."""
    import tensorflow as tf

    tf.constant(0)
    peaks = [peak_memory()]
    loaded = tf.saved_model.load(str(Path(model_dir, "export", "1")))
    peaks.append(peak_memory())
    loaded.signatures["serving_default"](tf.constant([" the" * PROMPT_TOKENS]))
    return [*peaks, peak_memory()]


def serve(args: argparse.Namespace) -> None:
    hparams = HParams.from_size(args.size)
    with tempfile.TemporaryDirectory() as model_dir:
        seconds = seconds_of(lambda: call_in_process(make_export, hparams, args.vocabulary or args.size, model_dir))
        print(f"exported in {seconds:.0f} s, from the start of a process")
        workers = [start_worker(make, model_dir, args.length) for make in (sample_in_process, sample_export)]
        rounds = measure_in_turn(workers, args.rounds)
        for worker in workers:
            worker.stop()  # so that the next process has the machine alone
        imported, loaded, written = call_in_process(memory_of_export, model_dir)
    rates = {name: statistics.median(values) for name, values in rounds.items()}
    print(f"{args.size}, float32, {PROMPT_TOKENS} prompt tokens and {args.length} new, median of {args.rounds} rounds")
    print(f"{'':32}{'tokens/s':>10}{'of in process':>15}{'of batch 1':>12}")
    for name, rate in rates.items():
        kind, batch = name.split(",")
        ratios = f"{rate / rates[f'in process,{batch}']:15.2f}{rate / rates[f'{kind}, batch 1']:12.2f}"
        print(f"{name:32}{rate:10.1f}{ratios}")
    print(f"\n{'memory, MB: TensorFlow imported':32}{imported:10.0f}")
    print(f"{'peak with the export loaded':32}{loaded:10.0f}")
    print(f"{'peak with a text written':32}{written:10.0f}")
    print(f"{'the weights':32}{4 * hparams.n_params / 2**20:10.0f}")


# load and memory


class Cost(NamedTuple):
    """What a function returned, and the process's memory in MB: with TensorFlow imported, and the peak."""

    result: Any
    imported: float
    peak: float


def cost_of(function: Callable, *arguments) -> Cost:
    """Measure a function's memory; call this function in a process of its own."""
    import tensorflow as tf

    tf.constant(0)
    gpt2_tf.GPT2  # noqa: B018 - imports the model
    imported = peak_memory()
    return Cost(function(*arguments), imported, peak_memory())


def save_openai(folder: str, hparams: HParams) -> float:
    return seconds_of(lambda: gpt2_tf.GPT2(hparams).save_checkpoint(folder))


def save_both_forms(folder: str, hparams: HParams) -> None:
    model = gpt2_tf.GPT2(hparams)
    model.save_checkpoint(folder)
    model.save_pretrained(Path(folder, "hf"))


def read_tensors(folder: str) -> float:
    """Read a checkpoint's tensors one by one with TensorFlow, which checks their CRCs, and keep none."""
    import tensorflow as tf

    def read():
        reader = tf.train.load_checkpoint(folder)
        for name in reader.get_variable_to_shape_map():
            reader.get_tensor(name)

    return seconds_of(read)


def load_openai(folder: str) -> float:
    return seconds_of(lambda: gpt2_tf.GPT2.from_checkpoint(folder))


def load_hf(folder: str) -> float:
    return seconds_of(lambda: gpt2_tf.GPT2.from_pretrained(Path(folder, "hf")))


def load(args: argparse.Namespace) -> None:
    hparams = HParams.from_size(args.size)
    functions = {"reading, CRCs checked": read_tensors, "from_checkpoint": load_openai, "from_pretrained": load_hf}
    costs = {name: [] for name in functions}
    with tempfile.TemporaryDirectory() as folder:
        call_in_process(save_both_forms, folder, hparams)
        for _ in range(args.rounds + 1):
            for name, function in functions.items():
                costs[name].append(call_in_process(cost_of, function, folder))
    weights = 4 * hparams.n_params / 2**20
    print(f"{args.size}, {weights:.0f} MB, median of {args.rounds} rounds, each in a process of its own")
    print(f"{'':24}{'seconds':>10}{'of reading':>14}{'memory, of the weights':>25}")
    # The first round may read the files from the disk.
    seconds = {name: statistics.median(cost.result for cost in values[1:]) for name, values in costs.items()}
    for name, values in costs.items():
        memory = statistics.median(cost.peak - cost.imported for cost in values[1:])
        ratio = seconds[name] / seconds["reading, CRCs checked"]
        print(f"{name:24}{seconds[name]:10.2f}{ratio:14.2f}{memory / weights:25.2f}")


def sample_in_dtype(folder: str, dtype: str, length: int) -> str:
    model = gpt2_tf.GPT2.from_checkpoint(folder, dtype=dtype)

    def sample():
        gpt2_tf.sample_sequence(model, length=length, context=list(range(PROMPT_TOKENS)), top_k=40, seed=1)

    sample()  # compiles
    return f"{length / seconds_of(sample):.2f} tokens/s"


def train_adapters(folder: str, window: int) -> str:
    from gpt2_tf.training import train

    model = gpt2_tf.GPT2.from_checkpoint(folder, remat=True, lora_rank=8, dtype="mixed_bfloat16")
    model.compile(train.adamw(5e-4, 10))
    tokens, targets = random_rows(model.hparams, (1, window))
    first, second = (seconds_of(lambda: model.train_on_batch(tokens, targets)) for _ in range(2))
    return f"{first:.0f} s, then {second:.1f} s per step"


def memory(args: argparse.Namespace) -> None:
    hparams = HParams.from_size(args.size)
    weights = 4 * hparams.n_params / 1e9
    print(f"{args.size}, random weights, {weights:.2f} GB in float32; each line in a process of its own")
    print(f"{'':60}{'peak, GB':>10}{'beyond TensorFlow':>19}{'of the weights':>16}")
    with tempfile.TemporaryDirectory(dir=args.dir) as folder:
        for name, function, *arguments in (
            ("save", save_openai, hparams),
            ("load", load_openai),
            (f"generate {args.length} tokens, float32", sample_in_dtype, "float32", args.length),
            (f"generate {args.length} tokens, bfloat16", sample_in_dtype, "bfloat16", args.length),
            (f"--remat --lora-rank 8 --precision bfloat16, 1 x {args.window}", train_adapters, args.window),
        ):
            cost = call_in_process(cost_of, function, folder, *arguments)
            time_taken = cost.result if isinstance(cost.result, str) else f"{cost.result:.0f} s"
            imported, peak = (size * 2**20 / 1e9 for size in (cost.imported, cost.peak))
            beyond = peak - imported
            print(f"{name:60}{peak:10.2f}{beyond:19.2f}{beyond / weights:16.2f}   {time_taken}", flush=True)


# workers


def workers(args: argparse.Namespace) -> None:
    import workers  # examples/workers.py

    seconds = {count: [] for count in (1, 2)}
    for _ in range(args.rounds):
        for count, steps in seconds.items():
            settings = [args.size, *map(str, (args.window, args.rows, args.steps, count))]
            command = [sys.executable, "-c", WORKER, *settings]
            started = workers.start(count, command, stdout=subprocess.PIPE, text=True)
            answers = [worker.communicate()[0] for worker in started]
            if any(worker.returncode for worker in started):
                raise SystemExit("a worker failed")
            steps += json.loads(answers[0])
    tokens = args.rows * args.window
    rates = {count: count * tokens / statistics.median(steps) for count, steps in seconds.items()}
    print(f"{args.size}, float32, {args.rows} rows of {args.window} tokens per process and step, one core per process")
    print(f"{'':32}{'tokens/s':>10}{'of one process':>16}")
    for count, rate in rates.items():
        print(f"{f'{count} process' + 'es' * (count > 1):32}{rate:10.1f}{rate / rates[1]:16.2f}")
    print("\nSeconds that a ring all-reduce of the gradients, 2 (n - 1) / n times 4 bytes per weight, uses a network")
    print(f"{'':32}{'bytes':>10}" + "".join(f"{f'{rate} Gbit/s':>16}" for rate in NETWORKS))
    for size in ("124M", "1558M"):
        sent = 4 * HParams.from_size(size).n_params
        for n in (2, 8):
            times = "".join(f"{8 * sent * 2 * (n - 1) / n / rate / 1e9:16.2f}" for rate in NETWORKS)
            print(f"{f'{size}, {n} workers':32}{sent:10.2e}{times}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(run: Callable, help: str, size: str = "124M", rounds: int | None = 5) -> argparse.ArgumentParser:
        sub = commands.add_parser(run.__name__, help=help)
        sub.set_defaults(run=run)
        sub.add_argument("--size", choices=SIZES, default=size, help=f"the model's size (default: {size})")
        if rounds:
            sub.add_argument("--rounds", type=int, default=rounds, help=f"measured rounds (default: {rounds})")
        return sub

    sub = command(generate, "tokens/s of sampling, time to the first token, memory")
    sub.add_argument("--length", type=int, default=128, help="new tokens per text (default: 128)")
    sub.add_argument("--json", metavar="FILE", help="write the tokens/s to FILE too")
    sub = command(train, "tokens/s of training, time to the first step, memory")
    sub.add_argument("--batch-size", type=int, default=2, help="rows per step (default: 2)")
    sub.add_argument("--window", type=int, default=256, help="tokens per row (default: 256)")
    sub.add_argument("--precision", nargs="+", choices=["float32", "bfloat16"], default=["float32", "bfloat16"])
    sub = command(serve, "tokens/s and memory of an export")
    sub.add_argument("--vocabulary", metavar="DIR", help="has encoder.json and vocab.bpe (default: download them)")
    sub.add_argument("--length", type=int, default=64, help="new tokens per text (default: 64)")
    sub = command(load, "time and memory to load weights")
    sub = command(memory, "memory of loading, sampling and a training step", size="1558M", rounds=None)
    sub.add_argument("--length", type=int, default=32, help="new tokens per text (default: 32)")
    sub.add_argument("--window", type=int, default=512, help="tokens of the training step (default: 512)")
    sub.add_argument("--dir", help="a folder with room for the weights' files (default: for temporary files)")
    sub = command(workers, "training by one process and by two, one core each; networks", rounds=3)
    sub.add_argument("--window", type=int, default=256, help="tokens per row (default: 256)")
    sub.add_argument("--rows", type=int, default=2, help="rows per process and step (default: 2)")
    sub.add_argument("--steps", type=int, default=5, help="measured steps, after a first one (default: 5)")
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
