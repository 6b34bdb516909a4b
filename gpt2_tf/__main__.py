"""`python -m gpt2_tf` runs the command `gpt2-tf`."""

import sys

from gpt2_tf.cli.main import main

sys.exit(main())
