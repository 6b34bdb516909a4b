"""Tokenizer files in Hugging Face's form: the same ids as in the transformers library, or an error."""

import json

import pytest
from oracles.transformers_models import edit_json

from gpt2_tf import load
from gpt2_tf.weights import hf_tokenizer

TEXT = "the then them\n\nnaïve  <|endoftext|> 12 👍\r\n\n x'll"


@pytest.mark.slow  # for the import of PyTorch
@pytest.mark.parametrize("without", [[], ["tokenizer.json"], ["vocab.json", "merges.txt"]], ids=["all", "two", "one"])
def test_transformers_tokenizer_gives_our_ids(copy, enc, transformers, without):
    for name in without:
        (copy / name).unlink()
    tokenizer = transformers.AutoTokenizer.from_pretrained(copy)
    assert tokenizer(TEXT)["input_ids"] == enc.encode(TEXT, "all")
    assert tokenizer.decode(enc.encode(TEXT, "all")) == TEXT
    assert (tokenizer.eos_token_id, tokenizer.bos_token_id, len(tokenizer)) == (259, 259, 260)
    assert hf_tokenizer.read_encoder(copy, 260).encode(TEXT) == enc.encode(TEXT)


def test_openais_vocabulary_survives_the_round_trip_byte_for_byte(shared, tmp_path):
    """`encoder.json` and `vocab.bpe` through `tokenizer.json`, and back."""
    from encoder import Encoder

    official = shared / "data" / "official-117M"
    enc = Encoder.from_folder(official)
    for name, content in hf_tokenizer.tokenizer_files(enc, n_ctx=40).items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    for name in ("tokenizer.json", "vocab.json"):
        hf_tokenizer.read_encoder(tmp_path, 50257).save(tmp_path / name.partition(".")[0])
        (tmp_path / "tokenizer.json").unlink(missing_ok=True)
        for file in ("encoder.json", "vocab.bpe"):
            ours = (tmp_path / name.partition(".")[0] / file).read_bytes()
            assert ours == (official / file).read_bytes()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"normalizer": {"type": "NFC"}}, 'normalizer is {"type": "NFC"}'),
        ({"pre_tokenizer": None}, "has no pre_tokenizer, but only ByteLevel is supported"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, 'pre_tokenizer.type is "Whitespace"'),
        ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}}, "add_prefix_space is true"),
        ({"model": {"type": "WordPiece"}}, 'model.type is "WordPiece"'),
        ({"model": {"type": "BPE", "vocab": 3}}, "is not a file of the tokenizers library"),
        ({"added_tokens": [{"content": "zz", "id": 260}]}, "has 261 tokens, but config.json says vocab_size 260"),
        ({"added_tokens": [{"content": "<|endoftext|>", "id": 258}]}, "is not a tokenizer of GPT-2's kind"),
    ],
)
def test_a_tokenizer_that_gives_other_ids_is_refused(copy, changed, message):
    edit_json(copy / "tokenizer.json", **changed)
    with pytest.raises(ValueError) as error:
        load(copy)
    assert message in str(error.value)


def test_a_prefix_space_in_tokenizer_config_json_is_refused(copy):
    edit_json(copy / "tokenizer_config.json", add_prefix_space=True)
    with pytest.raises(ValueError, match="add_prefix_space is true, but only false is supported"):
        load(copy)


def test_added_tokens_and_a_padded_vocabulary(copy, enc):
    tokenizer = json.loads((copy / "tokenizer.json").read_text())
    more = [{"content": "[PAD]", "id": 260}, {"content": "<s>", "id": 261}]
    edit_json(copy / "tokenizer.json", added_tokens=tokenizer["added_tokens"] + more)
    ours = hf_tokenizer.read_encoder(copy, 264)
    assert ours.n_vocab == 264
    assert ours.special_tokens == {"<|endoftext|>": 259, "[PAD]": 260, "<s>": 261} | {
        f"<|unused{i}|>": i for i in (262, 263)
    }
    assert ours.encode("[PAD]the<s>") == enc.encode("[PAD]the<s>")
    assert ours.encode("[PAD]the<s>", "all") == [260, *enc.encode("the"), 261]


@pytest.mark.slow  # for the import of transformers
def test_a_token_added_in_transformers_has_the_same_id(copy, transformers):
    tokenizer = transformers.AutoTokenizer.from_pretrained(copy)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(copy)
    ours = hf_tokenizer.read_encoder(copy, 261)
    assert ours.encode("the[PAD]", "all") == tokenizer("the[PAD]")["input_ids"]
