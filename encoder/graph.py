"""Text to token ids and back as TensorFlow operations, with exactly the ids of `encoder.bpe`.

`tf.data` pipelines and exported models use this encoder, because it needs no Python at run time.

TensorFlow's regular expressions (RE2) have no look-ahead, so OpenAI's pattern is written as rules on neighbouring
characters. All words are merged at once. One step does every merge of a word that cannot affect another merge.

Bytes that are not UTF-8 are read as Python's `bytes.decode("utf-8", "replace")` reads them: each incomplete character,
or else each invalid byte, becomes U+FFFD. `encode` does this to its input, and `decode` to its result.
"""

import re
from functools import cache

import numpy as np
import tensorflow as tf
import tiktoken

from encoder.bpe import Encoder

OTHER, LETTER, NUMBER, SPACE, EDGE = range(5)  # classes of characters; EDGE is before and after a text
CPU = "CPU:0"  # TensorFlow keeps strings on the CPU; on a GPU, the other tensors would be copied to it and back

# How many neighbouring pairs on each side `_merge_step` checks for conflicts. A higher number takes longer per step (5%
# per pair) and needs fewer steps for long words. On a book without its spaces (0.9 million letters, OpenAI's
# vocabulary), depth 2 needs 386 steps, depth 4 needs 13, and depth 6 needs 8.
DEPTH = 6


class GraphEncoder(tf.Module):
    """An `Encoder` as TensorFlow operations and constant tables.

    As with `Encoder`, added tokens such as `<speaker1>` are recognized in the text, and `<|endoftext|>` is plain text.

    Attributes:
        tokens: string [n_vocab], the bytes of each id.

    Args:
        enc: the encoder whose ids are wanted; all 256 bytes must be tokens.

    Example:
        >>> graph_encoder = GraphEncoder(enc)
        >>> ids = graph_encoder.encode(tf.constant(["To be", "or"]))  # a ragged tensor, int32 [2, (ids)]
        >>> ids.to_list() == [enc.encode("To be"), enc.encode("or")]
        True
        >>> graph_encoder.decode(ids).numpy().tolist()
        [b'To be', b'or']
    """

    def __init__(self, enc: Encoder):
        super().__init__()
        keys, ranks = _pair_table(enc)
        self._added_pattern = "|".join(re.escape(name) for name in enc.added_tokens)
        ids = {token: i for i, token in enumerate(enc.tokens)}
        with tf.device(CPU):
            self.tokens = tf.constant(enc.tokens)  # string [n_vocab]
            self._classes = tf.constant(_character_classes())  # int8 [code points]
            self._added_names = tf.constant(list(enc.added_tokens), tf.string)  # string [added]
            self._added_ids = tf.constant(list(enc.added_tokens.values()), tf.int32)  # int32 [added]
            self._ids = tf.constant([ids[bytes([byte])] for byte in range(256)])  # int32 [256]
            self._keys = tf.constant(keys)  # int64 [pairs]
            self._ranks = tf.constant(ranks)  # int32 [3, pairs]

    @tf.function(autograph=False, input_signature=[tf.TensorSpec([None], tf.string, name="text")])
    def encode(self, text: tf.Tensor) -> tf.RaggedTensor:
        """Return the token ids of each text, as `Encoder.encode` gives them.

        Args:
            text: string [batch], any bytes.

        Returns:
            int32 [batch, (ids)], ragged.
        """
        with tf.device(CPU):
            if not self._added_pattern:
                return self._encode_plain(text)
            text = tf.strings.unicode_transcode(text, "UTF-8", "UTF-8", errors="replace")
            # The byte 0xFF occurs in no UTF-8 text, so it can mark both ends of each added token.
            marked = tf.raw_ops.RegexReplace(input=text, pattern=self._added_pattern, rewrite=b"\xff\\0\xff")
            pieces = tf.strings.split(marked, sep=b"\xff")  # [batch, (pieces)]; every second piece is an added token
            position = tf.range(tf.size(pieces.values)) - tf.cast(
                tf.gather(pieces.row_starts(), pieces.value_rowids()), tf.int32
            )
            is_added = position % 2 == 1
            plain_ids = self._encode_plain(tf.where(is_added, "", pieces.values))  # [pieces, (ids)]
            names = tf.boolean_mask(pieces.values, is_added)
            added = tf.gather(self._added_ids, tf.argmax(names[:, None] == self._added_names, axis=1))
            added_ids = tf.RaggedTensor.from_row_lengths(added, tf.cast(is_added, tf.int64), validate=False)
            ids = tf.concat([plain_ids, added_ids], axis=1)  # each row has ids in one of the two
            splits = tf.gather(ids.row_splits, pieces.row_splits)
            return tf.RaggedTensor.from_row_splits(ids.values, splits, validate=False)

    def _encode_plain(self, text: tf.Tensor) -> tf.RaggedTensor:
        """Return the token ids of texts without added tokens: string [batch] -> int32 [batch, (ids)]."""
        with tf.device(CPU):
            points = tf.strings.unicode_decode(text, "UTF-8", errors="replace")  # [batch, (characters)]
            starts = self._match_starts(points)
            splits = tf.concat([tf.where(starts)[:, 0], [tf.size(starts, tf.int64)]], 0)
            pieces = tf.RaggedTensor.from_row_splits(points.values, splits, validate=False)
            words, word = tf.unique(tf.strings.unicode_encode(pieces, "UTF-8"))
            ids = tf.gather(self._merge_words(words), word)  # [pieces, (ids)]
            piece = tf.concat([[0], tf.cumsum(tf.cast(starts, tf.int32))], 0)  # pieces that start before each character
            splits = tf.gather(ids.row_splits, tf.gather(piece, points.row_splits))
            return tf.RaggedTensor.from_row_splits(ids.values, tf.cast(splits, tf.int64), validate=False)

    @tf.function(autograph=False, input_signature=[tf.RaggedTensorSpec([None, None], tf.int32)])
    def decode(self, ids: tf.RaggedTensor) -> tf.Tensor:
        """Return the text of each row of token ids.

        Args:
            ids: int32 [batch, (ids)], ragged.

        Returns:
            string [batch], valid UTF-8.

        Raises:
            tf.errors.InvalidArgumentError: an id is not between 0 and n_vocab - 1.
        """
        with tf.device(CPU):
            row = tf.cumsum(_rows_started(ids.row_splits)) - 1
            text = tf.strings.unsorted_segment_join(tf.gather(self.tokens, ids.values), row, ids.nrows())
            text = tf.ensure_shape(text, [None])  # TensorFlow does not infer the rank, and exports name it
            return tf.strings.unicode_transcode(text, "UTF-8", "UTF-8", errors="replace")

    def _match_starts(self, points: tf.RaggedTensor) -> tf.Tensor:
        """Return the characters at which a match of OpenAI's pattern starts.

        Args:
            points: int32 [batch, (characters)], code points.

        Returns:
            bool [all characters].
        """
        point = points.values
        first = _rows_started(points.row_splits) > 0
        last = _next(first, True)
        char_class = tf.gather(self._classes, point)
        previous_class = tf.where(first, tf.constant(EDGE, tf.int8), _previous(char_class, EDGE))
        next_class = tf.where(last, tf.constant(EDGE, tf.int8), _next(char_class, EDGE))

        # The last space of a run is left for the word that follows. The word includes it if it is U+0020; any other
        # space character is then a match of its own.
        left_over = (next_class != SPACE) & (next_class != EDGE)
        taken_in = ~first & (_previous(point, 0) == ord(" "))
        starts = tf.where(
            char_class == SPACE, (previous_class != SPACE) | left_over, (previous_class != char_class) & ~taken_in
        )

        # The contractions 's|'t|'re|'ve|'m|'ll|'d match only where a match starts: in "'sam", not in " 'sam".
        second = tf.where(last, 0, _next(point, 0))
        third = _next(second, 0)
        apostrophe = starts & (point == ord("'"))
        two = apostrophe & _is_in(second, "stmd")
        three = apostrophe & (_is_in(second, "rv") & _is_in(third, "e") | _is_in(second, "l") & _is_in(third, "l"))
        after_two = _previous(_previous(two, False), False)
        after_three = _previous(_previous(_previous(three, False), False), False)
        return starts & ~_previous(two | three, False) | after_two | after_three

    def _merge_words(self, words: tf.Tensor) -> tf.RaggedTensor:
        """Merge the bytes of each word until no pair can be merged: string [words] -> int32 [words, (ids)]."""
        ids = tf.gather(self._ids, tf.cast(tf.io.decode_raw(tf.strings.reduce_join(words), tf.uint8), tf.int32))
        splits = tf.concat([[0], tf.cumsum(tf.strings.length(words))], 0)
        word = tf.cumsum(_rows_started(splits)) - 1
        _, ids, word = tf.while_loop(
            lambda any_merged, ids, word: any_merged,
            lambda any_merged, ids, word: self._merge_step(ids, word),
            (tf.size(ids) > 1, ids, word),
            shape_invariants=(tf.TensorShape([]), tf.TensorShape([None]), tf.TensorShape([None])),
            parallel_iterations=1,
        )
        return tf.RaggedTensor.from_value_rowids(ids, word, tf.size(words), validate=False)

    def _merge_step(self, ids: tf.Tensor, word: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Do all merges that cannot affect each other.

        OpenAI's rule merges the lowest-ranked pair of a word, from the left, until no pair has a rank. The rule reaches
        a pair of rank r unchanged if two things hold: no merge of a rank up to r takes its left token away, to the
        left, and no merge of a rank below r takes its right token away, to the right. Such pairs are merged here at
        once. The pairs of a word's lowest rank are merged too, so each step makes progress.

        Args:
            ids: int32 [n], the tokens of all words.
            word: int32 [n], the number of the word that each token belongs to.

        Returns:
            Whether any pair was merged, and the new `ids` and `word`.
        """
        never = tf.size(self.tokens)
        rank, grown_left, grown_right = self._ranks_of(ids, word)

        # The lowest rank at which a pair's right token could be merged into the token on its left, or the left token
        # into the token on its right. An earlier merge may have made that token longer; DEPTH such merges are followed.
        # Beyond DEPTH pairs, any token is assumed to grow at once.
        taken_left = taken_right = tf.zeros_like(rank)
        for _ in range(DEPTH):
            taken_left = tf.minimum(rank, tf.maximum(grown_left, _previous(taken_left, never)))
            taken_right = tf.minimum(rank, tf.maximum(grown_right, _next(taken_right, never)))
        safe = (rank < _previous(taken_left, never)) & (rank <= _next(taken_right, never))

        lowest = tf.math.unsorted_segment_min(rank, word[:-1], word[-1] + 1)
        lowest = (rank < never) & (rank == tf.gather(lowest, word[:-1]))
        # Of overlapping equal pairs, as in "aaaa", every second pair is merged.
        at = tf.range(tf.size(rank))
        begins = lowest & ~_previous(lowest, False)
        run = tf.gather(tf.concat([[0], tf.boolean_mask(at, begins)], 0), tf.cumsum(tf.cast(begins, tf.int32)))
        merged = safe | lowest & ((at - run) % 2 == 0)

        ids = tf.concat([tf.where(merged, rank, ids[:-1]), ids[-1:]], 0)
        left = tf.where(tf.concat([[True], ~merged], 0))[:, 0]
        return tf.reduce_any(merged), tf.gather(ids, left), tf.gather(word, left)

    def _ranks_of(self, ids: tf.Tensor, word: tf.Tensor) -> list[tf.Tensor]:
        """Look up the three ranks of `_pair_table` for each pair of neighbouring ids: int32 [n - 1] each."""
        key = tf.cast(ids[:-1], tf.int64) * tf.size(self.tokens, tf.int64) + tf.cast(ids[1:], tf.int64)
        position = tf.searchsorted(self._keys, key)
        known = (tf.gather(self._keys, position) == key) & (word[:-1] == word[1:])
        position = tf.where(known, position, tf.size(self._keys) - 1)
        return tf.unstack(tf.gather(self._ranks, position, axis=1))


def _rows_started(splits: tf.Tensor) -> tf.Tensor:
    """Return how many rows start at each value: int32 [values], from the row splits of a ragged tensor.

    The cumulative sum is one more than each value's row number. `value_rowids` and `tf.repeat` give the row number too,
    but their memory grows with the number of rows times the longest row.
    """
    return tf.scatter_nd(splits[:-1, None], tf.ones_like(splits[:-1], tf.int32), splits[-1:] + 1)[:-1]


# `tf.roll` could do this, but it hands even a few values to another thread, which takes longer.
def _previous(values: tf.Tensor, fill: object) -> tf.Tensor:
    """The value before each of the values [n], with `fill` before the first."""
    return tf.concat([[fill], values], 0)[:-1]


def _next(values: tf.Tensor, fill: object) -> tf.Tensor:
    """The value after each of the values [n], with `fill` after the last."""
    return tf.concat([values, [fill]], 0)[1:]


def _is_in(point: tf.Tensor, letters: str) -> tf.Tensor:
    return tf.reduce_any([point == ord(letter) for letter in letters], 0)


@cache
def _character_classes() -> np.ndarray:
    """Return the class of each code point, int8 [0x110000], according to tiktoken's regular expressions."""
    classes = np.full(0x110000, OTHER, np.int8)
    text = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x110000)]))
    for char_class, pattern in ((LETTER, r"\p{L}"), (NUMBER, r"\p{N}"), (SPACE, r"\s")):
        found = tiktoken.Encoding(
            "bytes", pat_str=pattern, mergeable_ranks={bytes([b]): b for b in range(256)}, special_tokens={}
        ).encode_ordinary(text)
        classes[[ord(character) for character in bytes(found).decode()]] = char_class
    return classes


def _pair_table(enc: Encoder) -> tuple[np.ndarray, np.ndarray]:
    """Return a table of token pairs: sorted keys, int64 [pairs], and ranks, int32 [3, pairs].

    The key of the pair (a, b) is a * n_vocab + b. The ranks of a pair are three token ids:
    0. the token that a and b merge to;
    1. the lowest token made from b and a longer token that ends in a, itself made by merging a to the left;
    2. the lowest token made from a and a longer token that starts with b, itself made by merging b to the right.
    A rank is n_vocab where there is no such token. The last column, with a key above all others, is for pairs that are
    not in the table.
    """
    merges = np.array(list(enc.merges), np.int64).reshape(-1, 2)
    ids = np.array(list(enc.merges.values()), np.int64)
    parts = np.full([enc.n_vocab, 2], -1, np.int64)
    parts[ids] = merges

    listed = [(0, merges, ids)]  # (row of `ranks`, pairs [n, 2], ranks [n])
    for side in (0, 1):
        pairs, rank = merges, ids
        while len(rank):
            shorter = parts[pairs[:, side], 1 - side]  # the last part of the left token, or the first of the right
            made = shorter >= 0
            pairs, rank = pairs[made], rank[made]
            pairs[:, side] = shorter[made]
            listed.append((1 + side, pairs, rank))

    keys = [pairs @ [enc.n_vocab, 1] for _, pairs, _ in listed]
    every = np.append(np.unique(np.concatenate(keys)), np.iinfo(np.int64).max)
    ranks = np.full([3, len(every)], enc.n_vocab, np.int32)
    for key, (row, _, rank) in zip(keys, listed, strict=True):
        np.minimum.at(ranks[row], np.searchsorted(every, key), rank)
    return every, ranks
