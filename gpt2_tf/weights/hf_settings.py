"""The JSON files in folders of Hugging Face's form, and the check that their settings are supported."""

import json
from collections.abc import Mapping
from pathlib import Path

from gpt2_tf.hparams import json_object


def read_json(path: Path) -> dict:
    """Read a file's JSON object.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: the file doesn't hold a JSON object.

    Example:
        >>> _ = Path("config.json").write_text('{"n_embd": 16}')
        >>> read_json(Path("config.json"))
        {'n_embd': 16}
    """
    try:
        return json_object(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is missing; a folder of Hugging Face's form needs it") from None


def check_settings(path: Path, values: Mapping, supported: Mapping[str, tuple]) -> None:
    """Check that each setting of a file has a supported value.

    Args:
        path: the file, for the error message.
        values: the file's content.
        supported: the supported values by the setting's name; "a.b" is the setting b inside the object a. A setting
            that is missing or null passes.

    Raises:
        ValueError: a setting has another value; all such settings are named.

    Example:
        >>> check_settings(Path("config.json"), {"n_inner": 7}, {"n_inner": (64,)})
        Traceback (most recent call last):
            ...
        ValueError: config.json: n_inner is 7, but only 64 is supported
    """
    wrong = []
    for name, allowed in supported.items():
        value = values
        for key in name.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        # 1 equals True in Python, so booleans are told apart from numbers.
        is_supported = any(value == other and isinstance(value, bool) == isinstance(other, bool) for other in allowed)
        if value is not None and not is_supported:
            wrong.append(f"{name} is {json.dumps(value)[:80]}, but only {json.dumps(allowed[0])} is supported")
    if wrong:
        raise ValueError(f"{path}: {'; '.join(wrong)}")
