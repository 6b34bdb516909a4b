"""Files and processes: what every command needs around its own work.

- `atomic.py`: write a file or a folder so that it appears complete, or not at all.
- `lock.py`: keep other processes out of a folder or a file.
- `journal.py`: keep the results of a long run, so that the same command resumes it after a kill.
- `shard.py`: split the rows of a run between several processes.
- `progress.py`: the progress bar on stderr.
- `interrupt.py`: Ctrl-C as KeyboardInterrupt, even inside TensorFlow.
- `regular.py`: open a file that must not be a pipe or a device.
- `png.py`: write a figure as a PNG.
- `terminal.py`: escape control characters of text from outside.
"""

from gpt2_tf.files.atomic import (
    atomic_path,
    atomic_write,
    disk_errors_name,
    move_into_place,
    new_folder,
    remove_abandoned,
    staging_folder,
)
from gpt2_tf.files.interrupt import raise_dropped_ctrl_c, reliable_ctrl_c, thread_receives_ctrl_c
from gpt2_tf.files.journal import Journal
from gpt2_tf.files.lock import file_lock, folder_lock
from gpt2_tf.files.regular import open_regular
from gpt2_tf.files.shard import UNSHARDED, Shard, parse_shard
from gpt2_tf.files.terminal import escape_control_characters, escape_generated_text

__all__ = [
    "UNSHARDED",
    "Journal",
    "Shard",
    "atomic_path",
    "atomic_write",
    "disk_errors_name",
    "escape_control_characters",
    "escape_generated_text",
    "file_lock",
    "folder_lock",
    "move_into_place",
    "new_folder",
    "open_regular",
    "parse_shard",
    "raise_dropped_ctrl_c",
    "reliable_ctrl_c",
    "remove_abandoned",
    "staging_folder",
    "thread_receives_ctrl_c",
]
