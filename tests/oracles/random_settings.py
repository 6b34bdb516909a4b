"""Random settings of `generate`, for a model of any vocabulary."""

import random

PROMPTS = ["ROMEO:", "A", "What light through yonder window breaks?\nIt is the east", "the then them"]


def random_settings(rng: random.Random) -> dict:
    """Return settings of `generate`, each of them on or off."""
    every = {
        "temperature": rng.choice([0, 0.5, 1.3]),
        "top_k": rng.randint(1, 200),
        "top_p": rng.uniform(0.2, 1),
        "min_p": rng.uniform(0, 0.2),
        "repetition_penalty": rng.uniform(0.8, 1.5),
        "no_repeat_ngram": rng.randint(1, 4),
        "logit_bias": {rng.randrange(260): rng.uniform(-5, 5) for _ in range(3)},
        "min_length": rng.randint(1, 20),
        "stop": rng.choice(["e", [" t", "\n"], [101, "the"]]),
        "window": True,
        "num_samples": 2,
    }
    chosen = {name: value for name, value in every.items() if rng.random() < 0.4}
    return {**chosen, "length": rng.randint(1, 90) if "window" in chosen else 9, "seed": rng.getrandbits(63)}
