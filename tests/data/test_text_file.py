"""All commands decode text in one way: UTF-8, without a byte order mark, with the line ends that it has."""

import gzip
import io

import pytest

from gpt2_tf.data.corpus import read_documents
from gpt2_tf.data.text_file import CHUNK_SIZE, decode_text, read_chunks, windows_line_ends_notice

TEXTS = {
    "Latin": "To be, or not to be.\r\n",
    "Cyrillic": "Быть или не быть.\n",
    "Greek": "Νὰ ζῇ κανεὶς ἢ νὰ μὴ ζῇ;",
    "zero low byte": "Ā fox ran over the dog",
}


def chunks_of(content, name="a.txt"):
    return list(read_chunks(name, io.BytesIO(content)))


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_a_byte_order_mark_is_left_out_and_the_rest_is_kept(text):
    marked = b"\xef\xbb\xbf" + text.encode()
    assert decode_text(marked, "a.txt") == "".join(chunks_of(marked)) == text
    assert "".join(chunks_of(gzip.compress(marked), "a.txt.GZ")) == text
    assert decode_text(text.encode() + b"\xef\xbb\xbf", "a.txt") == text + "\ufeff"  # only the first is a mark


@pytest.mark.parametrize("before", range(4))
def test_a_character_may_lie_on_the_edge_of_two_chunks(before):
    text = "x" * (CHUNK_SIZE - before) + "色は"
    assert "".join(chunks_of(text.encode())) == text


@pytest.mark.parametrize("encoding", ["UTF-16LE", "UTF-16BE", "UTF-32LE", "UTF-32BE"])
@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["bare", "marked"])
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_utf_16_and_utf_32_are_refused_by_name(text, mark, encoding):
    name = encoding[:6]
    remedy = name if mark else encoding  # iconv takes the byte order from the mark
    with pytest.raises(ValueError, match=f"^a.txt is {name}, but must be UTF-8; .* iconv -f {remedy} -t UTF-8$"):
        decode_text((mark + text).encode(encoding), "a.txt")


@pytest.mark.parametrize("text", ["a\0b", "\0", "one\0two", "The quick\0 brown fox", "ab\0c"])
def test_nul_characters_alone_do_not_make_a_text_utf_16(text):
    assert decode_text(text.encode(), "a.txt") == text


def test_other_encodings_are_refused_with_the_byte():
    with pytest.raises(ValueError, match=r"^a\.txt is not UTF-8: byte 0xe9 at offset 4; convert it to UTF-8 first$"):
        decode_text(b"cafs\xe9", "a.txt")


def test_windows_line_ends_are_kept_and_noted_in_one_line(tmp_path, capsys):
    texts = {
        "a.txt": b"one\r\n" + b"x" * (CHUNK_SIZE - 6) + b"\r\ntwo",
        "b.txt": b"one\r\n",
        "c.txt": b"one\ntwo\rthree",
    }
    for name, content in texts.items():
        (tmp_path / name).write_bytes(content)
    edge = tmp_path / "edge.txt"  # its only \r\n lies on the edge of two chunks
    edge.write_bytes(b"x" * (CHUNK_SIZE - 1) + b"\r\ny")
    paths = [*(tmp_path / name for name in texts), edge]
    documents = "".join(read_documents(paths, "reading", column=None, field="text", notices=True))
    assert documents == "".join(path.read_bytes().decode() + "<|endoftext|>" for path in paths)
    assert capsys.readouterr().err == f"{windows_line_ends_notice([paths[0], paths[1], edge])}\n"
    list(read_documents(paths, "reading", column=None, field="text"))
    assert capsys.readouterr().err == ""
