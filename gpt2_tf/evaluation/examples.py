"""Read the files of examples that `gpt2-tf evaluate lambada` and `choice` take: one JSON object per line."""

import json
from collections.abc import Mapping
from typing import Any

from gpt2_tf.hparams import is_whole

# Each task's line, as error messages show it.
FORMATS = {
    "lambada": '{"text": "..."}',
    "choice": '{"context": "...", "choices": ["...", "..."], "answer": 0}, optionally with "ending": "..."',
}


def read_examples(text: str, name: str, task: str) -> list[Any]:
    """Parse the content of a file of examples. Blank lines are skipped.

    Args:
        text: the content, one JSON object per line.
        name: the file's name, for error messages.
        task: "lambada" or "choice".

    Returns:
        For "lambada" the passages, list of str; for "choice" the questions, list of dict.

    Raises:
        ValueError: the content is empty, or a line has another form; the error has the line's number.

    Example:
        >>> read_examples('{"text": "How now, my lord"}', "passages.jsonl", "lambada")
        ['How now, my lord']
    """
    if not text.strip():
        raise ValueError(f"{name} is empty, but must have one JSON object per line: {FORMATS[task]}")
    examples = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{name}: line {number} is not JSON ({error}); expected {FORMATS[task]}") from None
        is_example = {"lambada": is_passage, "choice": is_question}[task]
        if not isinstance(values, dict) or not is_example(values):
            raise ValueError(f"{name}: line {number} is {line[:60]!r}, but must be {FORMATS[task]}")
        examples.append(values["text"] if task == "lambada" else values)
    return examples


def is_passage(values: Mapping[str, Any]) -> bool:
    """Whether a JSON object has the form of a line for "lambada".

    Example:
        >>> is_passage({"text": "Good night, my lord"})
        True
    """
    return isinstance(values.get("text"), str)


def is_question(values: Mapping[str, Any]) -> bool:
    """Whether a JSON object has the form of a line for "choice".

    Example:
        >>> is_question({"context": "Good night, my", "choices": [" lord", " chair"], "answer": 0})
        True
    """
    return (
        isinstance(values.get("context"), str)
        and isinstance(values.get("ending", ""), str)
        and isinstance(values.get("choices"), list)
        and len(values["choices"]) > 1
        and all(isinstance(text, str) and text for text in values["choices"])
        and is_whole(values.get("answer"), 0, len(values["choices"]) - 1)
    )
