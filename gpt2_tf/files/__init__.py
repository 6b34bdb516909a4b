"""Files and folders: atomic writes, locks, journals of long runs, shards of work, progress bars, Ctrl-C."""
