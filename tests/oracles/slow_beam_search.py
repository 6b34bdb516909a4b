"""The oracle of beam search: it never ends early."""

import numpy as np


def slow_search(logprobs, ends, num_beams, num_return, length, penalty):
    """Return the `num_return` best (score, ids), and the number of steps after which no other can be among them.

    Args:
        logprobs: a function from new ids, a tuple, to the log-probabilities of the next token, [n_vocab].
        ends: a function from new ids to whether the text ends at the last of them.
    """
    beams, finished, steps = [(0.0, ())], [], None
    for n in range(1, length + 1):
        extended = [(total + p, (*ids, i)) for total, ids in beams for i, p in enumerate(logprobs(ids))]
        extended.sort(reverse=True)
        finished += [(total / n**penalty, ids) for total, ids in extended[:num_beams] if n == length or ends(ids)]
        finished = sorted(finished, reverse=True)[:num_return]
        beams = [(total, ids) for total, ids in extended if not ends(ids)][:num_beams]
        possible = max((beams[0][0] / later**penalty for later in range(n + 1, length + 1)), default=-np.inf)
        if steps is None and len(finished) == num_return and possible <= finished[-1][0]:
            steps = n
    return finished, steps
