"""Download OpenAI's files of a GPT-2 size: `python download_model.py 124M` fills the folder `models/124M`.

A file is written as `NAME.part`, and gets its name only when it is complete and checked. So a file with its final name
can be trusted. Running the same command again continues the `.part` files of the vocabulary, the index and the weights,
because checksums cover the result: a SHA-256 for the vocabulary, and CRC32C for the index and for each tensor. The
other three files are small and start again.
"""

import argparse
import contextlib
import hashlib
import os
import re
import sys
from collections.abc import Collection
from pathlib import Path

from gpt2_tf.files.lock import folder_lock
from gpt2_tf.files.regular import open_regular
from gpt2_tf.hparams import SIZES, HParams, canonical_size
from gpt2_tf.pretrained.transfer import disk_errors, fetch, notify

# NumPy (in gpt2_tf.weights) is imported where it is used, so that `--help` is quick.

BASE_URL = "https://openaipublic.blob.core.windows.net/gpt-2/models"
INDEX, META, DATA = "model.ckpt.index", "model.ckpt.meta", "model.ckpt.data-00000-of-00001"
# The weights come last, because the index says their size and checksums.
FILES = ("checkpoint", "encoder.json", "hparams.json", "vocab.bpe", INDEX, META, DATA)
# All sizes have the same vocabulary. tiktoken publishes these checksums.
SHA256 = {
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
}
HPARAMS = {size: HParams.from_size(size) for size in SIZES}
RESUMABLE = {*SHA256, INDEX, DATA}
# Bytes; the largest files of OpenAI have less than half of these. The bound of the weights follows from `HPARAMS`.
MAX_SIZES = {
    "checkpoint": 10_000,
    "encoder.json": 3_000_000,
    "hparams.json": 10_000,
    "vocab.bpe": 1_000_000,
    INDEX: 1_000_000,
    META: 20_000_000,
}


def download(
    size: str,
    models_dir: str | os.PathLike = "models",
    base_url: str | None = None,
    names: Collection[str] = FILES,
) -> Path:
    """Fetch those of OpenAI's seven files that are missing or damaged in the folder `models_dir/size`.

    A complete folder needs no network. Progress and notices go to stderr.

    Args:
        size: "124M", "355M", "774M" or "1558M", or an older name such as "117M".
        models_dir: the folder that holds a folder for each size; made if missing; default "models".
        base_url: a mirror, which must serve BASE_URL/124M/hparams.json and so on. Default: the environment variable
            GPT2_TF_BASE_URL, or else OpenAI's server.
        names: the files to fetch; default all seven.

    Returns:
        The folder of the size.

    Raises:
        ValueError: the size is unknown, or `base_url` is not a URL.
        OSError: the network, the server, the disk or the content of a file is at fault. The text is one line.

    Example:
        >>> folder = download("124M", names=["hparams.json"])  # doctest: +SKIP
        >>> folder  # doctest: +SKIP
        PosixPath('models/124M')
    """
    size = canonical_size(size)
    base_url = base_url or os.environ.get("GPT2_TF_BASE_URL") or BASE_URL
    if not re.match(r"https?://[^/]", base_url):
        raise ValueError(f"the base URL is {base_url!r}, but must begin with http:// or https:// and a server's name")
    folder = Path(models_dir) / size
    if not (faulty := [name for name in names if _find_fault(folder / name, size)]):
        return folder
    _make_folder(folder)
    with contextlib.ExitStack() as resources:
        with disk_errors(folder):
            resources.enter_context(folder_lock(folder, wait=True))
        weights = f", {4 * HPARAMS[size].n_params / 1e6:,.0f} MB of weights" if DATA in faulty else ""
        notify(f"downloading {size} to {folder}: {len(faulty)} of {len(FILES)} files{weights}")
        for name in faulty:
            # Checked again, because another process may have fetched the file while this one waited for the lock.
            if fault := _find_fault(folder / name, size):
                if fault != "missing":
                    notify(f"{folder / name} is damaged, so it is fetched again: {fault}")
                _fetch(f"{base_url.rstrip('/')}/{size}/{name}", folder / name, size)
    return folder


def check_file(path: Path, name: str, size: str) -> None:
    """Check that a file can be the one that OpenAI serves.

    Args:
        path: the file. For the weights and the index, the other of the two must lie beside it.
        name: one of `FILES`.
        size: one of OpenAI's sizes.

    Raises:
        ValueError: the file is damaged or another one.

    Example:
        >>> sizes = '{"n_vocab": 50257, "n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 12}'
        >>> _ = Path("hparams.json").write_text(sizes)
        >>> check_file(Path("hparams.json"), "hparams.json", "124M")
    """
    from gpt2_tf.weights.protobuf import decode_fields

    if name in SHA256:
        with open_regular(path) as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != SHA256[name]:
            raise ValueError(f"its SHA-256 is {found[:16]}..., but OpenAI's is {SHA256[name][:16]}...")
    elif name == "checkpoint":
        with open_regular(path) as file:
            pointer = file.read(MAX_SIZES[name])
        if not re.match(rb'model_checkpoint_path: "[^"\n]+"\r?\n', pointer):
            raise ValueError('it does not begin with a line model_checkpoint_path: "..."')
    elif name == "hparams.json":
        found, expected = HParams.from_json(path).to_dict(), HPARAMS[size].to_dict()
        different = [key for key in found | expected if found.get(key) != expected.get(key)]
        if different:
            values = ", ".join(f"{key} {found.get(key)}, not {expected.get(key)}" for key in different)
            raise ValueError(f"it is not of {size}: it has {values}")
    elif name == INDEX:
        _read_weights_size(path, size)
    elif name == META:
        with open_regular(path) as file:
            meta_graph = file.read()
        # Field 2 of TensorFlow's MetaGraphDef is the graph.
        if 2 not in {number for number, _ in decode_fields(meta_graph)}:
            raise ValueError("it is not a TensorFlow graph")
    elif name == DATA:
        found, expected = path.stat().st_size, _read_weights_size(path.with_name(INDEX), size)
        if found != expected:
            raise ValueError(f"it has {found:,} bytes, but {INDEX} says {expected:,}")
        _check_tensors(path)


def _find_fault(path: Path, size: str) -> str | None:
    """Return why a file cannot be used, or None. The weights are read to their end."""
    if not path.exists():
        return "missing"
    try:
        check_file(path, path.name, size)
    except (ValueError, FileNotFoundError) as error:
        return str(error)
    return None


def _read_weights_size(index: Path, size: str) -> int:
    """Return the size in bytes of the weights' file, according to its index."""
    from gpt2_tf.weights.tensor_bundle import data_sizes, read_index

    sizes = data_sizes(read_index(index))
    if list(sizes) != [0]:
        raise ValueError(f"{index} is an index of {len(sizes)} files of weights, not of {DATA} alone")
    most = 4 * HPARAMS[size].n_params  # float32
    if sizes[0] > most:
        raise ValueError(f"{index} is for weights of {sizes[0]:,} bytes, but {size} has only {most:,}")
    return sizes[0]


def _check_tensors(path: Path) -> None:
    """Raise ValueError unless each tensor has the checksum that the index says."""
    from gpt2_tf.weights.tensor_bundle import damaged_tensors, read_index

    notify(f"checking {path} against {INDEX}")
    entries = read_index(path.with_name(INDEX))
    if names := damaged_tensors(path, entries):
        raise ValueError(f"{len(names)} of {len(entries)} tensors don't have the CRC32C in {INDEX}, as {names[0]}")


def _fetch(url: str, path: Path, size: str) -> None:
    """Fetch one file, check its content, and give it its name."""
    expected = _read_weights_size(path.with_name(INDEX), size) if path.name == DATA else None
    max_size = MAX_SIZES[path.name] if expected is None else expected
    part = fetch(url, path, resume=path.name in RESUMABLE, size=expected, max_size=max_size)
    try:
        check_file(part, path.name, size)
    except ValueError as error:
        part.unlink()
        raise OSError(
            f"{url}: what came is not the model's {path.name}: {str(error).replace(str(part), 'it')}; removed it; run "
            "again, and if the error comes again, a login page or a broken mirror may be the cause (see --base-url)"
        ) from None
    with disk_errors(path):
        os.replace(part, path)  # not by files/atomic.py, because `part` is kept between runs


def _make_folder(folder: Path) -> None:
    for path in (folder, *folder.parents):
        if path.exists() and not path.is_dir():
            raise NotADirectoryError(f"{path} is a file, but must be a folder; choose another --models-dir")
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line of `download_model.py`.

    Args:
        arguments: the words after the program's name; None takes those of this process.

    Returns:
        The exit status: 0, 1 for an error, 2 for a mistake in the arguments, 130 for Ctrl-C.

    Example:
        >>> main(["125M"])
        2
    """
    parser = argparse.ArgumentParser(prog="download_model.py", description="Download OpenAI's files of a GPT-2 size.")
    parser.add_argument("size", help="124M, 355M, 774M or 1558M")
    parser.add_argument(
        "--models-dir", default="models", help="the folder that gets a folder for the size (default: models)"
    )
    parser.add_argument("--base-url", help=f"the URL of a mirror (default: $GPT2_TF_BASE_URL, or {BASE_URL})")
    options = parser.parse_args(arguments)
    try:
        folder = download(options.size, options.models_dir, options.base_url)
    except KeyboardInterrupt:
        notify("download_model.py: interrupted; run the same command again to resume")
        return 130
    except (OSError, ValueError) as error:
        notify(f"download_model.py: error: {error}")
        return 1 if isinstance(error, OSError) else 2
    notify(f"{folder} is complete")
    return 0


if __name__ == "__main__":
    sys.exit(main())
