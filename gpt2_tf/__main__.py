"""`python -m gpt2_tf` is `gpt2-tf`."""

import sys

from gpt2_tf.cli.main import main

sys.exit(main())
