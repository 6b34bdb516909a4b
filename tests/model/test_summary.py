"""The table that `model.summary()` prints."""

import re

import pytest
from oracles.random_model import HPARAMS, random_model


@pytest.mark.parametrize("lora_rank", [None, 2])
def test_every_row_has_a_shape_and_the_rows_add_up_to_the_total(lora_rank):
    model = random_model(HPARAMS, lora_rank=lora_rank)
    printed = []
    model.summary(print_fn=printed.append)
    (text,) = printed
    rows = re.findall(r"│ (\w+) \((\w+)\) +│ (\S.*?) +│ +([\d,]+) │", text)
    assert [row[:3] for row in rows] == [
        ("wte", "Embedding", "(None, None, 60)"),
        ("wpe", "Embedding", "(None, 60)"),
        *((f"h{i}", "Block", "(None, None, 60)") for i in range(3)),
        ("ln_f", "Norm", "(None, None, 60)"),
    ]
    total = HPARAMS.n_params + sum(int(variable.numpy().size) for variable in model.adapters().values())
    assert sum(int(row[3].replace(",", "")) for row in rows) == total
    assert f"Total params: {total:,}" in text
