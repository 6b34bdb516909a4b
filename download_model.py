"""Download OpenAI's files of a GPT-2 size: `python download_model.py 124M` fills the folder `models/124M`.

This script has the name and the arguments of OpenAI's own. `gpt2_tf.pretrained.download` does the work.
"""

import sys

from gpt2_tf.pretrained.download import BASE_URL, FILES, download, main

__all__ = ["BASE_URL", "FILES", "download", "main"]

if __name__ == "__main__":
    sys.exit(main())
