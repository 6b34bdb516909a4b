"""The paper's zero-shot table for the sizes that are on disk, each figure beside the paper's.

    python examples/paper_table.py --lambada lambada_test.jsonl --wikitext2 wiki.test.tokens --ptb ptb.test.txt

A file for each column that is wanted:

    --lambada                    OpenAI's jsonl, {"text": "..."} a line
    --cbt-cn, --cbt-ne           the Children's Book Test's cbtest_CN_test_2500ek.txt and cbtest_NE_test_2500ek.txt
    --wikitext2, --wikitext103   wiki.test.tokens, with its <unk> and @-@
    --ptb                        ptb.test.txt, with its <unk> and N
    --enwik8, --text8            the last 5,000,000 bytes of each
    --1bw                        held-out sentences of the One Billion Word Benchmark, one a line

OpenAI published neither its code for this table nor its "invertible de-tokenizers"; those below put punctuation and
quotes back by a few rules, and `PAPER` is from "Language Models are Unsupervised Multitask Learners" (Radford et al.,
2019), table 3. Expect the same picture, not the same digits. In particular:

- Perplexity is exp(nats / the words and line ends of the file as it is), whatever the de-tokenizer makes of them.
- Windows are of n_ctx tokens and move by `--stride`; the paper doesn't say how its did. 1BW's sentences, which come in
  no order, are scored each alone.
- <unk> is left as the text that it is. N of PTB too, and its lower case; text8 has no case to put back.
- LAMBADA's accuracy is with a stop-word filter, of which the paper says no more than that it has one, and its
  perplexity of the last word; below the table are the other ways that `gpt2-tf evaluate lambada` counts.
- CBT is scored by the probability of each choice and the rest of its sentence, as the paper says; a context that is
  too long loses its beginning.
- Bytes that aren't UTF-8, as where a file was cut within a character, are read as U+FFFD.
"""

import argparse
import gc
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path

import gpt2_tf
from gpt2_tf.hparams import OLDER_NAMES, SIZES

WEIGHTS = "model.ckpt.data-00000-of-00001"
COLUMNS = {
    "lambada-ppl": "LAMBADA PPL",
    "lambada-acc": "LAMBADA ACC",
    "cbt-cn": "CBT-CN ACC",
    "cbt-ne": "CBT-NE ACC",
    "wikitext2": "WikiText2 PPL",
    "ptb": "PTB PPL",
    "enwik8": "enwik8 BPB",
    "text8": "text8 BPC",
    "wikitext103": "WikiText103 PPL",
    "1bw": "1BW PPL",
}
PAPER = {
    "124M": (35.13, 45.99, 87.65, 83.4, 29.41, 65.85, 1.16, 1.17, 37.50, 75.20),
    "355M": (15.60, 55.48, 92.35, 87.1, 22.76, 47.33, 1.01, 1.06, 26.37, 55.72),
    "774M": (10.87, 60.12, 93.45, 88.0, 19.93, 40.31, 0.97, 1.02, 22.05, 44.575),
    "1558M": (8.63, 63.24, 93.30, 89.05, 18.34, 35.76, 0.93, 0.98, 17.48, 42.16),
}
FILES = ("lambada", "cbt-cn", "cbt-ne", "wikitext2", "ptb", "enwik8", "text8", "wikitext103", "1bw")


def joined(text: str) -> str:
    """Words without the spaces that tokenizers put around punctuation, brackets, quotes and contractions."""
    text = re.sub(r" @([-,.])@ ", r"\1", text)
    text = re.sub(r"`` ?| ?''(?!\w)", '"', text)
    text = re.sub(r' ?" ([^"\n]*?) ?"', r' "\1"', text)
    text = re.sub(r" (n't|'(?:s|re|ve|ll|d|m|t)\b)", r"\1", text)
    text = re.sub(r" ([,.;:!?%)\]}])", r"\1", text)
    return re.sub(r"([(\[{$]) ", r"\1", text)


def wikitext(text: str) -> str:
    """As `joined`, and join the equals signs of headings; remove the space at both ends of each line."""
    heading = re.compile(r"^ ?((?:= )+)(.+?)((?: =)+) ?$", re.MULTILINE)
    text = heading.sub(lambda m: f"{m[1].replace(' ', '')} {m[2].strip()} {m[3].replace(' ', '')}", text)
    return re.sub(r"^ | $", "", joined(text), flags=re.M)


def ptb(text: str) -> str:
    return re.sub(r"^ | $", "", joined(text), flags=re.M)


def words(text: str) -> int:
    """Count words as these datasets do: each word between spaces, and each end of a line."""
    return len(text.split()) + text.count("\n")


def questions(text: str) -> list[dict]:
    """The Children's Book Test: 20 numbered lines, then a 21st with XXXXX, the answer and ten candidates."""
    found, lines = [], []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            lines = []
            continue
        _, _, line = line.partition(" ")
        if "\t" not in line:
            lines.append(line)
            continue
        query, answer, *_, candidates = line.split("\t")
        choices = [choice for choice in candidates.split("|") if choice]
        before, blank, after = query.partition("XXXXX")
        if not blank or answer not in choices:
            raise ValueError(f"line {number} is no question of the Children's Book Test: {line[:60]!r}")
        so_far = " ".join([*lines, before.rstrip()]).rstrip()
        glued = not so_far or so_far.endswith(("``", "(", "[", "{", "$")) or before[-1:].strip()
        space = "" if glued else " "
        ending = joined(f"x{after}")[1:]
        found.append(
            {
                "context": joined(so_far),
                "choices": [f"{space}{choice}" for choice in choices],
                "answer": choices.index(answer),
                "ending": ending,
            }
        )
        lines = []
    return found


def fitting(found: list[dict], enc, n_ctx: int) -> list[dict]:
    """Questions whose contexts have lost their beginnings where they are longer than the window."""
    fit = []
    for question in found:
        longest = max(len(enc.encode(choice + question["ending"])) for choice in question["choices"])
        ids = enc.encode(question["context"])
        if len(ids) > (room := max(1, n_ctx - longest - 8)):  # 8 for what cutting may tokenize anew
            question = {**question, "context": enc.decode(ids[-room:], errors="ignore")}
        fit.append(question)
    return fit


def measure(name: str, text: str, model, enc, stride: int | None, batch_size: int) -> dict[str, float | dict]:
    """Return the figures of a column; for LAMBADA two figures, and all ways of counting."""
    from gpt2_tf import evaluation
    from gpt2_tf.evaluation.examples import read_examples

    settings = {"batch_size": batch_size, "bar": True}
    if name == "lambada":
        found = evaluation.lambada(model, enc, read_examples(text, name, "lambada"), **settings, name=name)
        accuracy = 100 * found["last_word_filtered"]["accuracy"]
        return {"lambada-ppl": found["last_word"]["perplexity"] or math.inf, "lambada-acc": accuracy, "ways": found}
    if name.startswith("cbt"):
        found = evaluation.choice(model, enc, fitting(questions(text), enc, model.hparams.n_ctx), **settings, name=name)
        return {name: 100 * found["accuracy"]["full"]}
    if name in ("enwik8", "text8"):
        return {name: evaluation.perplexity(model, enc, text, stride=stride, **settings)["bits_per_byte"]}
    detokenize: Callable[[str], str] = {"ptb": ptb, "1bw": joined}.get(name, wikitext)
    if name != "1bw":
        nats = evaluation.perplexity(model, enc, detokenize(text), stride=stride, **settings)["nats"]
    else:
        lines = [line for line in detokenize(text).splitlines() if line]
        nats = -sum(sum(scores) for scores in gpt2_tf.score(model, enc, lines, batch_size=batch_size))
    return {name: math.exp(min(nats / words(text), 700))}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in FILES:
        parser.add_argument(f"--{name}", type=Path, metavar="FILE")
    parser.add_argument("--models-dir", default="models", help="where the sizes are (default: models)")
    parser.add_argument("--model", action="append", help="a size, or a folder (default: all sizes in --models-dir)")
    parser.add_argument("--stride", type=int, help="how far windows move (default: half of them)")
    parser.add_argument("--batch-size", type=int, default=8)
    args = parser.parse_args()
    files = {name: path for name in FILES if (path := getattr(args, name.replace("-", "_"))) is not None}
    if not files:
        parser.error("no dataset is given; --help names them")
    texts = {name: path.read_bytes().decode(errors="replace") for name, path in files.items()}
    models = args.model or [
        size for size in SIZES if Path(args.models_dir, size, "model.ckpt.data-00000-of-00001").exists()
    ]
    if not models:
        parser.error(f"{args.models_dir} has none of {', '.join(SIZES)}; `gpt2-tf download 124M` fetches one")

    measured, ways = {}, {}
    for name in models:
        model, enc = gpt2_tf.load(name, args.models_dir)
        measured[name] = {}
        for column, text in texts.items():
            print(f"{name}: {column}", file=sys.stderr)
            measured[name] |= measure(column, text, model, enc, args.stride, args.batch_size)
        ways[name] = measured[name].pop("ways", None)
        del model
        gc.collect()  # it holds itself, and the next would come beside it

    columns = [column for column in COLUMNS if any(column in figures for figures in measured.values())]
    print("| model | " + " | ".join(COLUMNS[column] for column in columns) + " |")
    print("| --- |" + " ---: |" * len(columns))
    for name, figures in measured.items():
        paper = dict(zip(COLUMNS, PAPER.get(OLDER_NAMES.get(name, name), ()), strict=False))
        print(f"| {name} | " + " | ".join(f"{figures[column]:.2f}" for column in columns) + " |")
        if paper:
            print("| the paper | " + " | ".join(f"{paper[column]:.2f}" for column in columns) + " |")
    for name, found in ways.items():
        if found:
            word, token = found["last_word"], found["last_token"]
            print(
                f"\nLAMBADA, {name}: last word {100 * word['accuracy']:.2f}% without the filter (the harness's way); "
                f"last token {100 * token['accuracy']:.2f}%, perplexity {token['perplexity'] or math.inf:.2f}"
            )


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None
