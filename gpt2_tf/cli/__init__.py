"""The command `gpt2-tf`: text goes to stdout, notices and progress to stderr.

    main.py            parse, run one command, errors as one line, exit status
    parser.py          argparse with plain errors and "did you mean"
    flags.py           flags that several commands share
    sampling_flags.py  the sampling parameters as flags, and as `/set` of a session
    inputs.py          text from an argument, a file or stdin
    terminal.py        notices and errors on stderr
    batch.py           many prompts in, their samples out, to stdout or to a file that survives a kill
    NAME.py            the command NAME: `add_parser` declares its flags, `run` does its work

The command files import TensorFlow only while they run, so that `--help` is quick.
"""

from gpt2_tf.lazy import public_names

public_names(__name__, {"main": "gpt2_tf.cli.main:main"})
