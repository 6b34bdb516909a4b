"""encoder/train.py: learned vocabularies load, give the ids of the `tokenizers` library, and are deterministic."""

import builtins
import json
import subprocess
import sys
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from encoder import Encoder
from encoder.train import characters, learn, train

ROOT = Path(__file__).resolve().parents[2]
EOT = "<|endoftext|>"
SENTENCES = [
    "The quick brown fox didn't jump over the lazy dog's 123 bones.\n\n    if x == 12:\n        return 'yes'\r\n",
    "Пока не требует поэта к священной жертве Аполлон, в заботах суетного света он малодушно погружён;\n",
    "色は匂へど散りぬるを、我が世誰ぞ常ならむ。有為の奥山今日越えて、浅き夢見じ酔ひもせず。\n",
    "إنما الأعمال بالنيات وإنما لكل امرئ ما نوى ١٢٣\t\tनमस्ते दुनिया 👩‍👩‍👧‍👦 👍🏽\n",
    "<|endoftext|> written out is plain text: <|endoftext|>.\n\n\n",
]
N_VOCAB = 420


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    paths = [folder / f"{n}.txt" for n in range(len(SENTENCES))]
    for path, sentence in zip(paths, SENTENCES, strict=True):
        path.write_bytes((sentence * 3).encode())
    return paths


@pytest.fixture(scope="module")
def trained(files, tmp_path_factory):
    """A folder with a vocabulary learned from `files`."""
    folder = tmp_path_factory.mktemp("vocabulary") / "new"
    train(files, N_VOCAB, folder)
    return folder


@pytest.fixture(scope="module")
def encoder(trained):
    return Encoder.from_folder(trained)


@pytest.fixture(scope="module")
def library(trained):
    """The tokenizer of the `tokenizers` library for the same two files."""
    model = tokenizers.models.BPE.from_file(str(trained / "encoder.json"), str(trained / "vocab.bpe"))
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    return tokenizer


def test_the_files_have_openais_form(trained, encoder):
    content = (trained / "encoder.json").read_text(encoding="ascii")
    ids = json.loads(content)
    lines = (trained / "vocab.bpe").read_bytes().decode().split("\n")
    assert content.startswith('{"!": 0, "\\"": 1, "#": 2,') and content.endswith(f'"{EOT}": {N_VOCAB - 1}}}')
    assert (ids["~"], ids["¡"], ids["ÿ"], ids["Ā"], ids["Ġ"], ids["Ń"]) == (93, 94, 187, 188, 220, 255)
    assert list(ids.values()) == list(range(N_VOCAB))
    assert lines[0] == "#version: 0.2" and lines[-1] == "" and len(lines) == N_VOCAB - 257 + 2
    assert [ids[line.replace(" ", "")] for line in lines[1:-1]] == list(range(256, N_VOCAB - 1))
    assert (encoder.n_vocab, encoder.end_of_text) == (N_VOCAB, N_VOCAB - 1)


def test_train_returns_the_encoder_it_wrote(files, encoder, tmp_path):
    returned = train(files[0], 300, tmp_path)
    assert returned.n_vocab == 300
    assert returned.encode(SENTENCES[0]) == Encoder.from_folder(tmp_path).encode(SENTENCES[0])


def test_the_first_merge_is_the_most_frequent_pair(tmp_path):
    (tmp_path / "a.txt").write_text("xyxyxyxy zz zz zz\n", encoding="utf-8")
    encoder = train([tmp_path / "a.txt"], 260, tmp_path)
    assert [encoder.tokens[i] for i in range(256, 259)] == [b"xy", b"zz", b" zz"]


def test_decode_inverts_encode(encoder):
    for sentence in [*SENTENCES, "unseen: Größe ☃ \x00\u3000"]:
        assert encoder.decode(encoder.encode(sentence), errors="strict") == sentence
    assert len(encoder.encode(SENTENCES[1])) < len(SENTENCES[1])


words = [word for sentence in SENTENCES for word in sentence.split(" ")]


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(
    st.lists(
        st.one_of(
            st.sampled_from([*words, " ", "\n", "\n\n", "\t", "\u3000", "'ll", "'LL"]),
            st.text(st.characters(exclude_categories=["Cs", "Cn"]), max_size=4),
        ),
        max_size=12,
    ).map("".join)
)
def test_ids_equal_the_tokenizers_library(encoder, library, string):
    assert encoder.encode(string) == library.encode(string).ids


def test_ids_of_held_out_text_equal_the_tokenizers_library(tmp_path):
    path = ROOT.parent / "shared" / "data" / "text" / "tinyshakespeare.txt"
    if not path.exists():
        pytest.skip(f"needs {path}")
    text = path.read_text(encoding="utf-8")
    (tmp_path / "train.txt").write_text(text[:300_000], encoding="utf-8", newline="")
    encoder = train([tmp_path / "train.txt"], 2000, tmp_path)
    model = tokenizers.models.BPE.from_file(str(tmp_path / "encoder.json"), str(tmp_path / "vocab.bpe"))
    library = tokenizers.Tokenizer(model)
    library.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    assert encoder.encode(text[-100_000:]) == library.encode(text[-100_000:]).ids


def test_blank_lines_are_learned_across_lines(tmp_path):
    """Two newlines in a row are a token of GPT-2 (id 628). Reading a file line by line would never show them."""
    (tmp_path / "a.txt").write_text("word\n\n\nword\n\n\n" * 3, encoding="utf-8", newline="")
    assert b"\n\n" in train([tmp_path / "a.txt"], 261, tmp_path).tokens


def test_reading_a_text_in_pieces_gives_the_vocabulary_of_the_whole_text(files, trained, tmp_path):
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=N_VOCAB - 1,
        min_frequency=2,
        show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator([path.read_bytes().decode() for path in files], trainer)
    ids = json.loads((trained / "encoder.json").read_bytes())
    del ids[EOT]
    assert tokenizer.get_vocab() == ids


def test_the_same_files_give_the_same_bytes_in_another_process(files, trained, tmp_path):
    code = "import sys; from encoder.train import train; train(sys.argv[2:], int(sys.argv[1]), '.')"
    for n in range(2):
        folder = tmp_path / str(n)
        folder.mkdir()
        command = [sys.executable, "-c", code, str(N_VOCAB), *map(str, files)]
        subprocess.run(command, cwd=folder, env={"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": str(n)}, check=True)
        for name in ("encoder.json", "vocab.bpe"):
            assert (folder / name).read_bytes() == (trained / name).read_bytes()


def test_learn_gives_the_vocabulary_that_train_writes(files, encoder, tmp_path):
    learned = learn((path.read_bytes().decode() for path in files), N_VOCAB)
    learned.save(tmp_path)
    assert (tmp_path / "encoder.json").read_bytes() == encoder._files["encoder.json"]
    assert (tmp_path / "vocab.bpe").read_bytes() == encoder._files["vocab.bpe"]


# A vocabulary of characters


def test_characters_of_ascii_are_numbered_as_nanogpt_numbers_them(tmp_path):
    text = "To be,\nor not to be"
    encoder = characters([text[:7], text[7:]])
    encoder.save(tmp_path)
    loaded = Encoder.from_folder(tmp_path)
    numbers = {character: i for i, character in enumerate(sorted(set(text)))}
    assert loaded.encode(text) == encoder.encode(text) == [numbers[character] for character in text]
    assert loaded.n_vocab == len(numbers) + 1 and loaded.end_of_text == len(numbers)
    assert loaded.decode(loaded.encode(text)) == text
    assert loaded.encode(f"{EOT}To", allowed_special=[EOT]) == [len(numbers), *loaded.encode("To")]


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(st.text(st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from("aé色は👍🏽 \n")), min_size=1))
def test_every_character_is_a_token_of_its_own(string):
    encoder = characters([string])
    ids = encoder.encode(string)
    assert [encoder.tokens[i].decode() for i in ids] == list(string)


def test_a_character_that_the_vocabulary_lacks_is_an_error():
    encoder = characters(["né\n"])
    message = r"'色' can't be encoded: this vocabulary of 6 tokens has no such character; remove it, or"
    with pytest.raises(ValueError, match=message):
        encoder.encode("n色")
    with pytest.raises(ValueError, match=message):
        encoder.encode_batch(["n", "n色"])
    with pytest.raises(ValueError, match="'<' can't be"):
        encoder.encode(EOT)
    for surrogates in ("\ud83d\udc4d", "\ud83d"):
        with pytest.raises(ValueError, match="can't be encoded"):
            encoder.encode(surrogates)


# Errors


def test_n_vocab_below_257_is_an_error(files, tmp_path):
    with pytest.raises(ValueError, match="n_vocab is 256; expected at least 257"):
        train(files, 256, tmp_path)
    assert train(files, 257, tmp_path).encode("the") == [83, 71, 68]


def test_a_text_too_small_says_how_many_tokens_it_gives(tmp_path):
    (tmp_path / "a.txt").write_text("abab abab", encoding="utf-8")
    with pytest.raises(
        ValueError, match=r"the text gives only 259 tokens, but n_vocab is 400; lower n_vocab to 259, or add text"
    ):
        train([tmp_path / "a.txt"], 400, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    assert train([tmp_path / "a.txt"], 259, tmp_path / "new").n_vocab == 259


def test_missing_empty_and_undecodable_files_are_named(files, tmp_path):
    with pytest.raises(ValueError, match="no text files"):
        train([], 300, tmp_path)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.txt"):
        train([*files, tmp_path / "nowhere.txt"], 300, tmp_path)
    (tmp_path / "empty.txt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"empty\.txt: the file is empty; expected UTF-8 text"):
        train([*files, tmp_path / "empty.txt"], 300, tmp_path)
    (tmp_path / "latin.txt").write_bytes("é".encode() + b"abc\xe9 def")
    with pytest.raises(
        ValueError, match=r"latin\.txt: not UTF-8 at byte offset 5 \(byte 0xe9\); expected UTF-8"
    ) as error:
        train([*files, tmp_path / "latin.txt"], 300, tmp_path)
    assert "\n" not in str(error.value)


def test_without_the_library_the_error_says_what_to_install(files, tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "tokenizers":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match="pip install tokenizers"):
        train(files, 300, tmp_path)
