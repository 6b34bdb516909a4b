"""Fetches OpenAI's files of a GPT-2: `python download_model.py 124M` fills `models/124M`.

`gpt2_tf.pretrained.download` does the work; this script has the name and the place of OpenAI's own.
"""

import sys

from gpt2_tf.pretrained.download import BASE_URL, FILES, download, main

__all__ = ["BASE_URL", "FILES", "download", "main"]

if __name__ == "__main__":
    sys.exit(main())
