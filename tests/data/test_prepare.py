"""`prepare` against the encoder on whole texts; and what is left after a kill, a mistake or foreign files."""

import csv
import gzip
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from encoder import Encoder
from encoder.train import train
from gpt2_tf.data import corpus, prepared
from gpt2_tf.data.prepare import prepare
from gpt2_tf.data.prepared import is_prepared, load_prepared
from gpt2_tf.files.lock import folder_lock

EOT = "<|endoftext|>"
TEXTS = ["The quick brown fox\n\n  didn't jump.\n", "色は匂へど 散りぬるを 👍\r\n", "then them the", "naïve\ttext "]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """An empty folder, which is the current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(name: str, content: str | bytes) -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return path


def closed(enc: Encoder, *texts: str) -> list[int]:
    """The ids that the documents should have: those of each text, then `<|endoftext|>`."""
    return [id for text in texts for id in [*enc.encode(text), enc.end_of_text]]


def as_csv(texts, column="text", **others) -> str:
    out = io.StringIO()
    rows = csv.DictWriter(out, [*others, column])
    rows.writeheader()
    for text in texts:
        rows.writerow({**others, column: text})
    return out.getvalue()


def as_jsonl(texts, field="text") -> str:
    return "".join(json.dumps({"id": 1, field: text}) + "\n" for text in texts)


# Reading


@pytest.mark.parametrize("gz", ["", ".gz"])
def test_each_format_gives_its_documents(folder, enc, gz):
    write(f"a.txt{gz}", TEXTS[0])
    write(f"b.csv{gz}", as_csv(TEXTS[1:3]))
    write(f"c.jsonl{gz}", as_jsonl(TEXTS[3:]))
    prepared = prepare([f"a.txt{gz}", f"b.csv{gz}", f"c.jsonl{gz}"], "out", enc)
    assert prepared.train.tolist() == closed(enc, *TEXTS)
    assert (prepared.train.dtype, prepared.val, prepared.encoder) == (np.uint16, None, enc)
    assert isinstance(prepared.train, np.memmap)


def test_column_and_field_choose_the_text(folder, enc):
    write("a.csv", "\ufeff" + as_csv([*TEXTS, ""], "said", who="x", when=3))
    write("b.jsonl", as_jsonl(TEXTS, "body") + "\n \n" + as_jsonl([""], "body"))
    prepared = prepare(["a.csv", "b.jsonl"], "out", enc, column="said", field="body")
    assert prepared.train.tolist() == closed(enc, *TEXTS, *TEXTS)


def test_a_csv_file_without_names_is_read_by_the_columns_number(folder, enc, capsys):
    write("a.csv", "To be,x\r\nor not,y\r\n")
    write("b.csv", "To be\nor not\n")
    texts = ["To be", "or not"]
    assert prepare(["a.csv"], "a", enc, column="1").train.tolist() == closed(enc, *texts)
    assert prepare(["a.csv"], "n", enc, column="2").train.tolist() == closed(enc, "x", "y")
    assert prepare(["b.csv"], "b", enc, column="1").train.tolist() == closed(enc, *texts)
    assert capsys.readouterr().err == ""
    assert prepare(["b.csv"], "c", enc).train.tolist() == closed(enc, "or not")
    assert capsys.readouterr().err == (
        "b.csv: the first row is read as the column's name; if it is text, give --column 1\n"
    )
    write("b.csv", "\n\ntext\nor not\n")
    write("e.csv", "Hello\nor not\n")
    assert prepare(["e.csv"], "e", enc).train.tolist() == closed(enc, "or not")
    assert capsys.readouterr().err.startswith("e.csv: the first row is read as the column's name")
    write("e.csv", "")
    assert prepare(["b.csv", "e.csv"], "b", enc, column="1").train.tolist() == closed(enc, "text", "or not")
    write("d.csv", "2,1\nx,y\n")
    assert prepare(["b.csv"], "c", enc).train.tolist() == closed(enc, "or not")
    assert prepare(["d.csv"], "d", enc, column="2").train.tolist() == closed(enc, "x")  # a name comes before a number
    assert capsys.readouterr().err == ""
    for column in ("3", "0", "-1", "01", "²"):
        with pytest.raises(ValueError, match=rf"^a\.csv has no column '{column}'; its first row has To be, x\. If"):
            prepare(["a.csv"], "e", enc, column=column)


def test_a_file_named_twice_is_read_once(folder, enc):
    for number, name in enumerate(["b.txt", "a.txt", "in/2.txt.gz", "in/sub/1.TXT", "in/skipped.md", "odd[1].txt"]):
        write(name, f"text {number}")
    prepared = prepare(["b.txt", "?.txt", "in", "in/**/*.TXT", "odd[1].txt"], "out", enc)
    assert prepared.train.tolist() == closed(enc, *(f"text {number}" for number in (0, 1, 2, 3, 5)))


def test_a_folders_files_that_are_not_the_users_text_are_skipped_and_counted(folder, enc, capsys):
    for name in ("in/b.txt", "in/deep/a.txt", "elsewhere/c.txt", "in/.hidden.txt", "in/.ipynb_checkpoints/b.txt"):
        write(name, Path(name).stem)
    for name in ("in/gpt2/merges.txt", "in/run/run.json", "in/run/samples.txt", "in/run/log.csv", "in/note.md"):
        write(name, "not text")
    Path("in/linked").symlink_to(folder / "elsewhere")
    Path("in/deep/loop").symlink_to(folder / "in")
    Path("elsewhere/loop").symlink_to(folder / "in/linked")
    Path("in/lost.txt").symlink_to("nowhere.txt")
    train, _, _ = prepare(["in"], "out", enc)
    assert train.tolist() == closed(enc, "b", "a", "c")
    reasons = "files of other formats (1), folders of training runs (1), hidden files (1), hidden folders (1)"
    reasons += ", links to missing files (1), merges.txt of a tokenizer (1)"
    assert capsys.readouterr().err == f"in: 3 text files are read; skipped: {reasons}\n"
    assert corpus.find_text_files(["in/.hidden.txt"]) == [Path("in/.hidden.txt")]  # a name is the user's word
    with pytest.raises(FileNotFoundError, match=r"in/gpt2 holds no text files \(skipped: merges"):
        corpus.find_text_files(["in/gpt2"])
    with pytest.raises(FileNotFoundError, match=r"in/run holds no text files \(skipped: files of a training run"):
        corpus.find_text_files(["in/run"])


def test_a_folder_that_a_link_leads_to_again_is_read_once_under_its_first_name(folder):
    for name in ("in/a/sub/x.txt", "in/a/z.txt"):
        write(name, "text")
    Path("in/b").symlink_to(folder / "in/a/sub")
    Path("in/a/sub/up").symlink_to(folder)
    assert corpus.find_text_files(["in"]) == [Path("in/a/sub/x.txt"), Path("in/a/z.txt")]


def test_end_of_text_written_out_becomes_its_id(folder, enc):
    write("a.txt", f"one{EOT}two\n{EOT}\n")
    write("b.jsonl", as_jsonl([f"three{EOT}", f"four{EOT}five"]))
    write("c.txt", f"six\n{EOT} \n\n")
    prepared = prepare(["a.txt", "b.jsonl", "c.txt"], "out", enc)
    assert prepared.train.tolist() == closed(enc, "one", "two\n", "three", "four", "five", "six\n")


def test_json_surrogates_become_characters_or_replacements(folder, enc):
    write("a.jsonl", r'{"text": "\ud83d\udc4d \ud83d."}')
    assert prepare(["a.jsonl"], "out", enc).train.tolist() == closed(enc, "👍 \ufffd.")


words = st.sampled_from(["'s", "'LL", "the", "don't", "1", "12,5", "é", "色", "👍🏽", "<|", "|>", EOT, ">", "\x1c"])
spaces = st.sampled_from([" ", "  ", "\n", "\n\n", " \n", "\t", "\r\n", "\u3000", "\xa0", "\x85", ""])
texts = st.lists(st.tuples(words, spaces), min_size=1, max_size=30).map(lambda pairs: "".join(map("".join, pairs)))


@settings(max_examples=500, deadline=None, derandomize=True, database=None)
@given(text=texts, size=st.integers(1, 9), kind=st.sampled_from(["a.txt", "a.csv", "a.jsonl"]))
def test_the_ids_of_pieces_are_the_ids_of_the_whole_text(tmp_path_factory, enc, text, size, kind):
    path = tmp_path_factory.getbasetemp() / kind
    content = {"a.txt": text, "a.csv": as_csv([text] * 2), "a.jsonl": as_jsonl([text])}[kind]
    path.write_bytes(content.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "PIECE_SIZE", size)
        pieces = list(corpus.read_documents([path], "", column=None, field="text"))
    whole = text if text.rstrip().endswith(EOT) else text + EOT
    whole = (whole.rstrip() if whole.rstrip().endswith(EOT) else whole) * (2 if kind == "a.csv" else 1)
    assert "".join(pieces) == whole
    assert [id for piece in pieces for id in enc.encode(piece, [EOT])] == enc.encode(whole, [EOT])


def test_a_long_text_is_cut_into_pieces(folder, enc):
    rng = random.Random(1)
    ends = [" ", "  ", "\n", "\n\n", ", "]
    text = "".join(rng.choice(["the", "them", "then"]) + rng.choice(ends) for _ in range(500_000))
    path = write("a.txt", text)
    pieces = list(corpus.read_documents([path], "", column=None, field="text"))
    assert len(pieces) > 8 and max(map(len, pieces)) < 2 * corpus.PIECE_SIZE
    assert prepare(["a.txt"], "out", enc).train.tolist() == closed(enc, text)


def test_openais_vocabulary_on_shakespeare(folder, shared):
    official = Encoder.from_folder(shared / "data/official-117M")
    path = shared / "data/text/tinyshakespeare.txt"
    prepared = prepare([path], "out", official, val_fraction=0.1)
    whole = closed(official, path.read_text("utf-8"))
    assert (len(prepared.train), len(prepared.val)) == (304_223, 33_803)  # nanoGPT's 301,966 and 36,059 cut the letters
    assert [*prepared.train.tolist(), *prepared.val.tolist()] == whole


# Validation


def test_val_fraction_takes_the_last_ids(folder, enc):
    write("a.txt", "the " * 100)
    whole = closed(enc, "the " * 100)
    for share in (0.1, 0.5, 0.9):
        train, val, _ = prepare(["a.txt"], "out", enc, val_fraction=share)
        assert [*train, *val] == whole and len(val) == round(len(whole) * share)
    assert prepare(["a.txt"], "out", enc).val is None
    assert sorted(os.listdir("out")) == ["encoder.json", "train.bin", "train.json", "vocab.bpe"]


def test_validation_files_are_not_trained_on(folder, enc):
    for name in "abc":
        write(f"in/{name}.txt", f"the {name}")
    train, val, _ = prepare(["in"], "out", enc, val_files=["in/b.txt"])
    assert (train.tolist(), val.tolist()) == (closed(enc, "the a", "the c"), closed(enc, "the b"))


# Vocabularies


def test_a_vocabulary_is_learned_from_the_training_text_alone(folder, tmp_path):
    write("a.jsonl", as_jsonl([text * 5 for text in TEXTS]))
    write("plain.txt", "\n".join(text * 5 for text in TEXTS))
    write("val.txt", "zzzz " * 99)
    prepared = prepare(["a.jsonl"], "out", 290, val_files=["val.txt"])
    enc = prepared.encoder
    assert enc.n_vocab == 290 and not any(b"zz" in token for token in enc.tokens)
    assert prepared.train.tolist() == closed(enc, *(text * 5 for text in TEXTS))
    assert load_prepared("out").encoder.tokens == enc.tokens
    # Nothing is learned from the <|endoftext|> that separates documents.
    assert prepare(["plain.txt"], "out2", 290).encoder.tokens == train(["plain.txt"], 290, "new").tokens


def test_a_vocabulary_of_characters(folder):
    write("a.txt", TEXTS[0] + TEXTS[3])
    write("val.txt", "色")
    prepared = prepare(["a.txt"], "out", "chars", val_files=["val.txt"])
    text = TEXTS[0] + TEXTS[3]
    tokens = [prepared.encoder.tokens[id].decode() for id in prepared.train]
    assert tokens == [*text, EOT] and len(prepared.val) == 2
    assert load_prepared("out").encoder.tokens == prepared.encoder.tokens


def test_ids_above_uint16_are_uint32(folder):
    rng = random.Random(1)
    enc = Encoder.from_folder(_large(folder, rng))
    write("a.txt", "the text")
    prepared = prepare(["a.txt"], "out", enc)
    assert prepared.train.dtype == np.uint32 and prepared.train.max() == enc.end_of_text == 65536
    assert prepared.train.tolist() == closed(enc, "the text")
    assert json.loads(Path("out/train.json").read_bytes())["dtype"] == "uint32"


def _large(folder: Path, rng: random.Random) -> Path:
    """A vocabulary of 65,537 tokens: the bytes, nearly all pairs of bytes, and `<|endoftext|>`."""
    from encoder.bpe import BYTES

    pairs = [(a, b) for a in BYTES for b in BYTES][: 65536 - 256]
    tokens = [*BYTES, *(a + b for a, b in pairs), EOT]
    (folder / "large").mkdir()
    (folder / "large/encoder.json").write_text(json.dumps({token: id for id, token in enumerate(tokens)}))
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in pairs)]
    (folder / "large/vocab.bpe").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return folder / "large"


# Kept, replaced, killed


def test_ids_are_kept_until_a_file_or_an_argument_changes(folder, enc, monkeypatch):
    write("a.txt", "the text")
    write("b.csv", as_csv(["the"], "said", who="them"))
    asked = [
        {},
        {"files": ["b.csv", "a.txt"]},
        {"vocabulary": "chars"},
        {"vocabulary": 257},
        {"column": "who"},
        {"val_fraction": 0.5},
        {"val_files": ["a.txt"], "files": ["b.csv"]},
    ]
    encoded = []
    encode = Encoder.encode
    monkeypatch.setattr(Encoder, "encode", lambda *args: encoded.append(1) or encode(*args))
    for changed in asked:
        arguments = {"files": ["a.txt", "b.csv"], "out": "out", "vocabulary": enc, "column": "said", **changed}
        first, n = prepare(**arguments), len(encoded)
        again = prepare(**arguments)
        assert len(encoded) == n > 0
        assert again.train.tolist() == first.train.tolist() and again.encoder.tokens == first.encoder.tokens
        encoded.clear()
    write("b.csv", as_csv(["foe"], "said", who="them"))  # of the same size
    assert prepare(**arguments).train.tolist() == closed(enc, "foe") and encoded
    Path("out/train.bin").write_bytes(Path("out/train.bin").read_bytes()[:-2])
    encoded.clear()
    assert prepare(**arguments).train.tolist() == closed(enc, "foe") and encoded


SCRIPT = """
import sys
from encoder import Encoder
from gpt2_tf.data.prepare import prepare
enc = Encoder.from_folder(sys.argv[1])
print("started", flush=True)
prepare(["a.txt"], "out", enc, val_fraction=float(sys.argv[2]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows has no SIGKILL")
def test_a_kill_at_any_moment_leaves_old_ids_or_none(folder, enc):
    enc.save("vocabulary")
    text = "the then them " * 200_000
    write("a.txt", text)
    whole = closed(enc, text)
    rng = random.Random(1)
    command = [sys.executable, "-c", SCRIPT, "vocabulary"]
    begun = time.monotonic()
    subprocess.run([*command, "0.25"], check=True)
    seconds = time.monotonic() - begun
    share, outcomes = 0.25, set()
    for _ in range(12):
        other = 0.5 if share == 0.25 else 0.25
        with subprocess.Popen([*command, str(other)], stdout=subprocess.PIPE) as process:
            process.stdout.readline()
            time.sleep(rng.uniform(0, seconds))
            process.kill()
        try:
            train, val, _ = load_prepared("out")
        except FileNotFoundError:
            outcomes.add("none")
            continue
        share = len(val) / len(whole)
        outcomes.add(round(share, 2))
        assert [*train.tolist(), *val.tolist()] == whole
        share = round(share, 2)
    assert outcomes >= {0.25, 0.5}
    train, val, _ = prepare(["a.txt"], "out", enc, val_fraction=0.1)
    assert [*train.tolist(), *val.tolist()] == whole
    assert not [name for name in os.listdir("out") if name.endswith(".part")]


@pytest.mark.parametrize("moves", range(8))
def test_an_end_between_any_two_moves_leaves_no_mixture(folder, enc, monkeypatch, moves):
    """The process ends after some of the steps that replace the old files: three removals, then six renames."""
    write("a.txt", "the then them")
    before = prepare(["a.txt"], "out", enc, val_fraction=0.5)
    old = (before.train.tolist(), before.val.tolist())
    write("a.txt", "them then the!")
    made = []

    def ends(real):
        def call(path, *args, **kwargs):
            if Path(path).parent.name == "out" or Path(args[0] if args else "").parent.name == "out":
                if len(made) == moves:
                    raise SystemExit
                made.append(path)
            return real(path, *args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", ends(os.replace))
        patch.setattr(Path, "unlink", ends(Path.unlink))
        with pytest.raises(SystemExit):
            prepare(["a.txt"], "out", enc, val_fraction=0.5)
    if moves == 0:
        kept = load_prepared("out")
        assert (kept.train.tolist(), kept.val.tolist()) == old
    else:
        with pytest.raises(FileNotFoundError, match=r"out/train\.bin is missing"):
            load_prepared("out")
    train, val, _ = prepare(["a.txt"], "out", enc, val_fraction=0.5)
    assert [*train, *val] == closed(enc, "them then the!")


def test_files_of_a_killed_process_are_removed(folder, enc):
    write("a.txt", "the")
    write("out/.part-0123456789abcdef/lock", "")
    write("out/.part-0123456789abcdef/files/train.bin", "train" * 9)
    train, val, _ = prepare(["a.txt"], "out", enc)
    assert (train.tolist(), val) == (closed(enc, "the"), None)
    assert sorted(os.listdir("out")) == ["encoder.json", "train.bin", "train.json", "vocab.bpe"]


def test_a_second_process_is_refused(folder, enc):
    write("a.txt", "the")
    os.mkdir("out")
    with folder_lock("out"), pytest.raises(BlockingIOError, match=r"^out is being written by another process; wait"):
        prepare(["a.txt"], "out", enc)
    prepare(["a.txt"], "out", enc)


def test_a_full_disk_leaves_the_old_ids(folder, enc, monkeypatch):
    write("a.txt", "the")
    prepare(["a.txt"], "out", enc)
    write("a.txt", "them")

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(Encoder, "encode", full)
        prepare(["a.txt"], "out", enc)
    assert load_prepared("out").train.tolist() == closed(enc, "the")
    assert sorted(os.listdir("out")) == ["encoder.json", "train.bin", "train.json", "vocab.bpe"]


# Files of other programs


def test_files_of_nanogpt_are_read(folder, enc):
    """As nanoGPT's data/openwebtext/prepare.py and data/shakespeare/prepare.py write them."""
    enc.save("vocabulary")
    Path("nano").mkdir()
    for name, text in (("train", "the them"), ("val", "then")):
        np.array(enc.encode(text), dtype=np.uint16).tofile(f"nano/{name}.bin")
    for place in ("nano", "nano/train.bin"):
        assert is_prepared([place])
        train, val, encoder = load_prepared(place, enc)
        assert (train.tolist(), val.tolist(), encoder) == (enc.encode("the them"), enc.encode("then"), enc)
    assert load_prepared("nano/val.bin", enc).val is None
    enc.save("nano")
    assert load_prepared("nano").encoder.tokens == enc.tokens
    assert not is_prepared(["nano", "nano"]) and not is_prepared(["vocabulary"])


def llm_c_file(ids: list[int], version: int = 1, magic: int = 20240520) -> bytes:
    """The bytes that llm.c's `dev/data/data_common.py` writes for GPT-2."""
    header = np.zeros(256, "<i4")
    header[:3] = magic, version, len(ids)
    return header.tobytes() + np.array(ids, "<u2").tobytes()


def test_files_of_llm_c_are_read(folder, enc):
    for name, text in (("train", "the them"), ("val", "then")):
        write(f"tiny_{name}.bin", llm_c_file(enc.encode(text)))
    train, val, _ = load_prepared("tiny_train.bin", enc)
    assert (train.tolist(), val.tolist()) == (enc.encode("the them"), enc.encode("then"))
    assert load_prepared("tiny_val.bin", enc).val is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (llm_c_file([1, 2])[:-1], "has 1027 bytes, but its header of 1024 bytes says 2 ids of uint16"),
        (llm_c_file([1, 2]) + b"\0\0", "has 1030 bytes, but its header of 1024 bytes says 2 ids of uint16"),
        (llm_c_file([1, 2])[:900], "has 900 bytes, but its header of 1024 bytes says 2 ids of uint16"),
        (llm_c_file([]), "is empty"),
        (llm_c_file([1], version=7), "is a file of llm.c of version 7 with 1 ids; expected version 1"),
        (llm_c_file([1, 260]), "has the id 260"),
        # Without the magic number, the header is read as nanoGPT's ids, of which the first is outside the vocabulary.
        (llm_c_file([1], magic=20240801), "has the id 55"),
    ],
)
def test_damaged_files_of_llm_c_are_refused(folder, enc, content, message):
    write("ids.bin", content)
    with pytest.raises(ValueError, match=rf"^ids\.bin {message}"):
        load_prepared("ids.bin", enc)


def test_ids_of_nanogpts_own_vocabulary_are_refused_with_the_command_that_makes_them(folder, enc):
    Path("nano").mkdir()
    np.arange(9, dtype=np.uint16).tofile("nano/train.bin")
    write("nano/meta.pkl", b"")
    message = r"nano/train\.bin has ids of nanoGPT's own vocabulary.*: gpt2-tf prepare .* --vocab-size chars"
    for encoder in (enc, None):
        with pytest.raises(ValueError, match=message):
            load_prepared("nano", encoder)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_not_waited_for(folder, enc):
    write("a.txt", "the text")
    prepare(["a.txt"], "out", enc)
    for name in ("train.bin", "train.json"):
        content = Path("out", name).read_bytes()
        Path("out", name).unlink()
        os.mkfifo(f"out/{name}")
        with pytest.raises(ValueError, match=rf"out/{name} is a pipe or a device, but must be a regular file"):
            load_prepared("out")
        Path("out", name).unlink()
        Path("out", name).write_bytes(content)


def test_val_fraction_splits_a_bin_without_a_val_bin(folder, enc):
    np.arange(250, dtype=np.uint16).tofile("ids.bin")
    train, val, _ = load_prepared("ids.bin", enc, val_fraction=0.2)
    assert [*train, *val] == list(range(250)) and len(val) == 50
    with pytest.raises(ValueError, match=r"val_fraction 0\.001 of 250 tokens leaves none to train on or"):
        load_prepared("ids.bin", enc, val_fraction=0.001)


def test_ids_outside_the_vocabulary_are_refused(folder, enc, monkeypatch):
    monkeypatch.setattr(prepared, "IDS_PER_READ", 16)
    ids = np.zeros(100, np.uint16)
    ids[[40, 77]] = 259, 260
    ids.tofile("ids.bin")
    message = r"ids\.bin has the id 260 at or after position 64, but the vocabulary has 260 tokens; give the vocabulary"
    with pytest.raises(ValueError, match=message):
        load_prepared("ids.bin", enc)
    ids[:78].tofile("ids.bin")
    with pytest.raises(ValueError, match="has the id 260"):
        load_prepared("ids.bin", enc)
    ids[:77].tofile("ids.bin")
    assert load_prepared("ids.bin", enc).train.tolist() == ids[:77].tolist()


def test_damaged_files_and_other_vocabularies_are_refused(folder, enc):
    write("a.txt", "the text")
    prepare(["a.txt"], "out", enc)
    whole, about = Path("out/train.bin").read_bytes(), Path("out/train.json").read_bytes()
    for content in (whole[:-1], whole[:-2], whole + b"\0\0", b""):
        Path("out/train.bin").write_bytes(content)
        message = rf"train\.bin has {len(content)} bytes, but train\.json says 7 ids of uint16; prepare it again"
        with pytest.raises(ValueError, match=message):
            load_prepared("out")
    Path("out/train.bin").write_bytes(whole)
    for content in (b"", b"{}", b"[]", about.replace(b"uint16", b"int8"), about.replace(b"7", b'"x"', 1)):
        Path("out/train.json").write_bytes(content)
        with pytest.raises(ValueError, match=r"train\.json is damaged; prepare the text again"):
            load_prepared("out")
    Path("out/train.json").write_bytes(about)
    other = train(["a.txt"], 257, "other")
    with pytest.raises(ValueError, match="vocabulary of 260 tokens, which differs from the model's of 257; prepare"):
        load_prepared("out", other)
    for name, content in (("odd", b"abc"), ("empty", b"")):
        Path(f"{name}.bin").write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name}\.bin (has 3 bytes, but each id has 2 bytes|is empty)"):
            load_prepared(f"{name}.bin", enc)
    with pytest.raises(FileNotFoundError, match=r"nowhere is missing; `gpt2-tf prepare`"):
        load_prepared("nowhere", enc)
    with pytest.raises(FileNotFoundError, match=r"no encoder\.json in"):
        Path("out/encoder.json").unlink()
        load_prepared("out")


def test_a_model_and_foreign_ids_are_not_overwritten(folder, enc):
    write("a.txt", "the")
    enc.save("model")
    with pytest.raises(FileExistsError, match=r"model holds a encoder\.json that `prepare` has not written; choose"):
        prepare(["a.txt"], "model", "chars")
    Path("nano").mkdir()
    np.arange(9, dtype=np.uint16).tofile("nano/train.bin")
    with pytest.raises(FileExistsError, match=r"nano holds a train\.bin that `prepare` has not written"):
        prepare(["a.txt"], "nano", enc)


# Mistakes


@pytest.mark.parametrize(
    "name, content, arguments, message",
    [
        (
            "a.txt",
            "é".encode() + b"ab\xe9 c",
            {},
            r"a\.txt is not UTF-8: byte 0xe9 at offset 4; convert it to UTF-8",
        ),
        ("a.txt", b"abc\xe2\x82", {}, r"a\.txt is not UTF-8: byte 0xe2 at offset 3; convert"),
        ("a.txt.gz", b"x" * 10 + b"\xff", {}, r"a\.txt\.gz is not UTF-8: byte 0xff at offset 10"),
        ("a.csv", b"text\nab\xff", {}, r"a\.csv is not UTF-8: byte 0xff at offset 7"),
        ("a.jsonl", b'{"text": "\xff"}', {}, r"a\.jsonl is not UTF-8: byte 0xff at offset 10"),
        ("a.txt", b"", {}, r"there is no text in a\.txt; give files that hold text"),
        (
            "a.txt",
            b"\xef\xbb\xbf",
            {"vocabulary": "chars"},
            "the texts are empty; a vocabulary of characters needs at least one character",
        ),
        ("a.csv", b"", {}, r"there is no text in a\.csv"),
        ("a.csv", b"a,b\n1,2\n", {}, r"a\.csv has the columns a, b; choose one with --column"),
        ("a.csv", b"a,b\n1,2\n", {"column": "c"}, r"a\.csv has no column 'c'; its first row has a, b"),
        (
            "a.csv",
            b"a,b\n1,2\n3\n",
            {"column": "a"},
            r"a\.csv: the row that ends in line 3 has 1 values, but the first row has 2; correct the file",
        ),
        ("a.csv", b'a\n"1\n2\n', {}, r"a\.csv: line 3 is not valid CSV: unexpected end of data; correct the file"),
        ("a.jsonl", b'{"text": "a"}\n{"text": ', {}, r"a\.jsonl: line 2 is not JSON: .*; expected one object per line"),
        ("a.jsonl", b'["a"]', {}, r"a\.jsonl: line 1 is a JSON list; expected an object"),
        (
            "a.jsonl",
            b'{"text": 1, "b": "c"}',
            {},
            r"no text in the field 'text'; choose another with --field\. Fields with text: b",
        ),
        (
            "a.pdf",
            b"abc",
            {},
            r"a\.pdf has an unknown format; expected a name that ends in \.txt, \.csv, \.jsonl, each also with \.gz",
        ),
        ("a.txt", b"abc", {"files": ["*.csv"]}, r"\*\.csv: no such file; expected a file, a folder or a glob"),
        (
            "in/a.md",
            b"abc",
            {"files": ["in"]},
            r"in holds no text files \(skipped: files of other formats \(1\)\); expected",
        ),
        ("a.txt", b"abc", {"files": []}, "no files are given; expected at least one file, folder or glob"),
        ("a.txt", b"abc", {"val_fraction": 1.0}, r"val_fraction is 1\.0, but must be at least 0 and below 1"),
        ("a.txt", b"abc", {"val_fraction": 0.1, "val_files": ["a.txt"]}, "are both given; give one of them"),
        (
            "a.txt",
            b"abc",
            {"val_files": ["a.txt"]},
            "all files are validation files, which leaves none to train on; give more files",
        ),
        (
            "a.txt",
            b"abc",
            {"val_fraction": 0.01},
            r"val_fraction 0\.01 of 4 tokens leaves none to train on or none to",
        ),
        ("a.txt", b"abc", {"vocabulary": 300}, "the text gives only 257 tokens, but n_vocab is 300"),
    ],
)
def test_mistakes_are_one_line_and_leave_no_ids(folder, enc, name, content, arguments, message):
    write(name, content)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        prepare(**{"files": [name], "out": "out", "vocabulary": enc, **arguments})
    assert "\n" not in str(error.value)
    assert not Path("out").exists() or os.listdir("out") == []


def test_an_incomplete_gzip_file_is_refused(folder, enc):
    whole = gzip.compress(os.urandom(5000).hex().encode())
    for content in (whole[:1000], whole[:-5], b"text", whole[:500] + b"\0" * 100 + whole[600:]):
        Path("a.txt.gz").write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.txt\.gz is not a complete gzip file: .*; get it again"):
            prepare(["a.txt.gz"], "out", enc)


def test_an_error_in_a_later_piece_has_its_offset_in_the_file(folder, enc):
    content = "é".encode() * corpus.PIECE_SIZE
    write("a.txt", content[: -corpus.PIECE_SIZE // 2 - 1] + b"\xff")
    offset = len(content) - corpus.PIECE_SIZE // 2 - 2
    with pytest.raises(ValueError, match=rf"byte 0xc3 at offset {offset};|byte 0xff at offset {offset + 1};"):
        prepare(["a.txt"], "out", enc)
