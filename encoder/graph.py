"""Text <-> token ids as TensorFlow's core ops, for `tf.data` and a SavedModel: exactly the ids of `encoder.bpe`.

RE2, which `tf.strings` has, knows no look-ahead, so OpenAI's pattern is written as rules on neighbouring characters.
All words are merged at once, and each at all places where merging one by one would come to the same.

Bytes that are no UTF-8 are read as Python's `bytes.decode("utf-8", "replace")` reads them: the beginning of a
character, as far as it goes, or else a byte, is one U+FFFD. `encode` does so first, and `decode` last.
"""

from functools import cache

import numpy as np
import tensorflow as tf
import tiktoken

from encoder.bpe import Encoder

OTHER, LETTER, NUMBER, SPACE, EDGE = range(5)  # kinds of characters; EDGE is what lies beyond a text's ends
CPU = "CPU:0"  # where strings live; a GPU would take the rest, and copy it to and fro

# How many pairs to either side are asked whether they threaten one. Each costs a twentieth of a step and saves steps in
# long words: for OpenAI's vocabulary and a book without its spaces, 0.9 million letters, 2 takes 386, 4 13 and 6 8.
DEPTH = 6


class GraphEncoder(tf.Module):
    """An `Encoder` as TensorFlow ops and constant tables. Any bytes will do; special tokens in them are plain text.

    `tokens` is string [n_vocab], the bytes of each id.
    """

    def __init__(self, enc: Encoder):
        super().__init__()
        keys, ranks = _pairs(enc)
        ids = {token: i for i, token in enumerate(enc.tokens)}
        with tf.device(CPU):
            self.tokens = tf.constant(enc.tokens)  # string [n_vocab]
            self._kinds = tf.constant(_kinds())  # int8 [code points]
            self._ids = tf.constant([ids[bytes([byte])] for byte in range(256)])  # int32 [256]
            self._keys = tf.constant(keys)  # int64 [pairs]
            self._ranks = tf.constant(ranks)  # int32 [3, pairs]

    @tf.function(autograph=False, input_signature=[tf.TensorSpec([None], tf.string, name="text")])
    def encode(self, text: tf.Tensor) -> tf.RaggedTensor:
        """string [batch] -> int32 [batch, (ids)]: each row as `Encoder.encode` alone gives it."""
        with tf.device(CPU):
            points = tf.strings.unicode_decode(text, "UTF-8", errors="replace")  # [batch, (characters)]
            starts = self._starts(points)
            splits = tf.concat([tf.where(starts)[:, 0], [tf.size(starts, tf.int64)]], 0)
            pieces = tf.RaggedTensor.from_row_splits(points.values, splits, validate=False)
            words, word = tf.unique(tf.strings.unicode_encode(pieces, "UTF-8"))
            ids = tf.gather(self._merged(words), word)  # [pieces, (ids)]
            piece = tf.concat([[0], tf.cumsum(tf.cast(starts, tf.int32))], 0)  # how many begin before a character
            splits = tf.gather(ids.row_splits, tf.gather(piece, points.row_splits))
            return tf.RaggedTensor.from_row_splits(ids.values, tf.cast(splits, tf.int64), validate=False)

    @tf.function(autograph=False, input_signature=[tf.RaggedTensorSpec([None, None], tf.int32)])
    def decode(self, ids: tf.RaggedTensor) -> tf.Tensor:
        """int32 [batch, (ids)] -> string [batch], valid UTF-8. InvalidArgumentError for what is no id."""
        with tf.device(CPU):
            row = tf.cumsum(_rows_begun(ids.row_splits)) - 1
            text = tf.strings.unsorted_segment_join(tf.gather(self.tokens, ids.values), row, ids.nrows())
            return tf.strings.unicode_transcode(text, "UTF-8", "UTF-8", errors="replace")

    def _starts(self, points: tf.RaggedTensor) -> tf.Tensor:
        """int32 [batch, (characters)] -> bool [all characters]: where a match of OpenAI's pattern begins."""
        point = points.values
        first = _rows_begun(points.row_splits) > 0
        last = _after(first, True)
        kind = tf.gather(self._kinds, point)
        kind_before = tf.where(first, tf.constant(EDGE, tf.int8), _before(kind, EDGE))
        kind_after = tf.where(last, tf.constant(EDGE, tf.int8), _after(kind, EDGE))

        # A run of spaces leaves its last to what follows, which takes U+0020 in; any other space is then alone.
        left_over = (kind_after != SPACE) & (kind_after != EDGE)
        taken_in = ~first & (_before(point, 0) == ord(" "))
        starts = tf.where(kind == SPACE, (kind_before != SPACE) | left_over, (kind_before != kind) & ~taken_in)

        # 's|'t|'re|'ve|'m|'ll|'d count only where a match begins: in "'sam", but in neither " 'sam" nor "!'sam".
        second = tf.where(last, 0, _after(point, 0))
        third = _after(second, 0)
        apostrophe = starts & (point == ord("'"))
        two = apostrophe & _is_in(second, "stmd")
        three = apostrophe & (_is_in(second, "rv") & _is_in(third, "e") | _is_in(second, "l") & _is_in(third, "l"))
        after_two = _before(_before(two, False), False)
        after_three = _before(_before(_before(three, False), False), False)
        return starts & ~_before(two | three, False) | after_two | after_three

    def _merged(self, words: tf.Tensor) -> tf.RaggedTensor:
        """string [words] -> int32 [words, (ids)]: the bytes of each, merged as far as they go."""
        ids = tf.gather(self._ids, tf.cast(tf.io.decode_raw(tf.strings.reduce_join(words), tf.uint8), tf.int32))
        splits = tf.concat([[0], tf.cumsum(tf.strings.length(words))], 0)
        word = tf.cumsum(_rows_begun(splits)) - 1
        _, ids, word = tf.while_loop(
            lambda more, ids, word: more,
            lambda more, ids, word: self._merge(ids, word),
            (tf.size(ids) > 1, ids, word),
            shape_invariants=(tf.TensorShape([]), tf.TensorShape([None]), tf.TensorShape([None])),
            parallel_iterations=1,
        )
        return tf.RaggedTensor.from_value_rowids(ids, word, tf.size(words), validate=False)

    def _merge(self, ids: tf.Tensor, word: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """One step: ids [n] of word [n] -> whether any were merged, and both anew.

        OpenAI's rule merges a word's lowest pair, from the left, until there is none. It comes to a pair of rank r,
        and finds it as it is now, if no merge up to r takes its left token to the left, and none below r its right
        one to the right. Such pairs are merged at once, and all of the lowest rank too, so that each step gets on.
        """
        never = tf.size(self.tokens)
        rank, grown_left, grown_right = self._ranks_of(ids, word)

        # The lowest rank at which a pair's right token could be taken by its left one, or by what that grew into. It
        # grows only once the pair before has taken it; beyond DEPTH pairs any might be taken at once.
        taken_left = taken_right = tf.zeros_like(rank)
        for _ in range(DEPTH):
            taken_left = tf.minimum(rank, tf.maximum(grown_left, _before(taken_left, never)))
            taken_right = tf.minimum(rank, tf.maximum(grown_right, _after(taken_right, never)))
        safe = (rank < _before(taken_left, never)) & (rank <= _after(taken_right, never))

        lowest = tf.math.unsorted_segment_min(rank, word[:-1], word[-1] + 1)
        lowest = (rank < never) & (rank == tf.gather(lowest, word[:-1]))
        # In a run of one pair, "aaaa", each second is merged.
        at = tf.range(tf.size(rank))
        begins = lowest & ~_before(lowest, False)
        run = tf.gather(tf.concat([[0], tf.boolean_mask(at, begins)], 0), tf.cumsum(tf.cast(begins, tf.int32)))
        merged = safe | lowest & ((at - run) % 2 == 0)

        ids = tf.concat([tf.where(merged, rank, ids[:-1]), ids[-1:]], 0)
        left = tf.where(tf.concat([[True], ~merged], 0))[:, 0]
        return tf.reduce_any(merged), tf.gather(ids, left), tf.gather(word, left)

    def _ranks_of(self, ids: tf.Tensor, word: tf.Tensor) -> list[tf.Tensor]:
        """ids [n] of word [n] -> the three ranks of `_pairs`, int32 [n - 1] each."""
        key = tf.cast(ids[:-1], tf.int64) * tf.size(self.tokens, tf.int64) + tf.cast(ids[1:], tf.int64)
        place = tf.searchsorted(self._keys, key)
        known = (tf.gather(self._keys, place) == key) & (word[:-1] == word[1:])
        place = tf.where(known, place, tf.size(self._keys) - 1)
        return tf.unstack(tf.gather(self._ranks, place, axis=1))


def _rows_begun(splits: tf.Tensor) -> tf.Tensor:
    """int32 [values]: how many rows begin at each value, in rows of these splits.

    Its sum so far tells a value's row, as `value_rowids` and `tf.repeat` do; those take rows times the longest bytes.
    """
    return tf.scatter_nd(splits[:-1, None], tf.ones_like(splits[:-1], tf.int32), splits[-1:] + 1)[:-1]


# tf.roll would do for these two, but hands even a few values to another thread, which takes longer.
def _before(values: tf.Tensor, fill: object) -> tf.Tensor:
    """What stands before each of values [n]; `fill` before the first."""
    return tf.concat([[fill], values], 0)[:-1]


def _after(values: tf.Tensor, fill: object) -> tf.Tensor:
    """What stands after each of values [n]; `fill` after the last."""
    return tf.concat([values, [fill]], 0)[1:]


def _is_in(point: tf.Tensor, letters: str) -> tf.Tensor:
    return tf.reduce_any([point == ord(letter) for letter in letters], 0)


@cache
def _kinds() -> np.ndarray:
    """int8 [0x110000]: the kind of each code point, as found by the expressions that `Encoder` runs on."""
    kinds = np.full(0x110000, OTHER, np.int8)
    text = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x110000)]))
    for kind, pattern in ((LETTER, r"\p{L}"), (NUMBER, r"\p{N}"), (SPACE, r"\s")):
        found = tiktoken.Encoding(
            "bytes", pat_str=pattern, mergeable_ranks={bytes([b]): b for b in range(256)}, special_tokens={}
        ).encode_ordinary(text)
        kinds[[ord(character) for character in bytes(found).decode()]] = kind
    return kinds


def _pairs(enc: Encoder) -> tuple[np.ndarray, np.ndarray]:
    """Keys int64 [pairs], sorted, and ranks int32 [3, pairs], of pairs (a, b) under the key a * n_vocab + b.

    The ranks are the id that the two merge to, the lowest that b merges to with a longer token that was made by
    merging a to the left, and the lowest that a merges to with a longer one that was made by merging b to the right;
    n_vocab where there is none. The last column is for pairs that aren't listed: a key beyond all, and n_vocab.
    """
    merges = np.array(list(enc.merges), np.int64).reshape(-1, 2)
    ids = np.array(list(enc.merges.values()), np.int64)
    parts = np.full([enc.n_vocab, 2], -1, np.int64)
    parts[ids] = merges

    listed = [(0, merges, ids)]  # row of ranks, pairs [n, 2], ranks [n]
    for side in (0, 1):
        pairs, rank = merges, ids
        while len(rank):
            shorter = parts[pairs[:, side], 1 - side]  # the last part of a pair's first token, or the first of its last
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
