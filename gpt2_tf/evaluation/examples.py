"""Files of examples, a JSON object per line: LAMBADA's texts and the questions of multiple choice."""

import json
from collections.abc import Mapping
from typing import Any

from gpt2_tf.hparams import is_whole

FORMS = {
    "lambada": '{"text": "..."}',
    "choice": '{"context": "...", "choices": ["...", "..."], "answer": 0}, and maybe "ending": "..."',
}


def read_examples(text: str, name: str, task: str) -> list[Any]:
    """The examples of LAMBADA ("lambada") or of `choice` in a file's text, an object of JSON a line.

    Raises:
        ValueError: the text is empty, or a line isn't such an object; the error has its number.
    """
    lines = text.removeprefix("\ufeff").removesuffix("\n").split("\n")
    if lines == [""]:
        raise ValueError(f"{name} is empty, but must have an object of JSON a line: {FORMS[task]}")
    examples = []
    for number, line in enumerate(lines, start=1):
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{name}: line {number} is not JSON ({error}); expected {FORMS[task]}") from None
        if not isinstance(values, dict) or not _IS_EXAMPLE[task](values):
            raise ValueError(f"{name}: line {number} is {line[:60]!r}, but must be {FORMS[task]}")
        examples.append(values["text"] if task == "lambada" else values)
    return examples


def is_text(values: Mapping[str, Any]) -> bool:
    """Whether an object is an example of LAMBADA."""
    return isinstance(values.get("text"), str)


def is_question(values: Mapping[str, Any]) -> bool:
    """Whether an object is a question as `choice` takes it."""
    return (
        isinstance(values.get("context"), str)
        and isinstance(values.get("ending", ""), str)
        and isinstance(values.get("choices"), list)
        and len(values["choices"]) > 1
        and all(isinstance(text, str) and text for text in values["choices"])
        and is_whole(values.get("answer"), 0, len(values["choices"]) - 1)
    )


_IS_EXAMPLE = {"lambada": is_text, "choice": is_question}
