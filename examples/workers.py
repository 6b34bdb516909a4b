"""Starts the workers of one machine: a command several times, each time with its own TF_CONFIG.

    python examples/workers.py 2 gpt2-tf train texts/ --out my-run --strategy multi-worker

On several machines, set TF_CONFIG to the same cluster on each, with the machine's own index. Where one worker fails,
the others say so and end; then the same command with `--init-from resume` goes on.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence


def start(count: int, command: Sequence[str], **kwargs) -> list[subprocess.Popen]:
    """The processes; `kwargs` are for `Popen`."""
    sockets = [socket.create_server(("localhost", 0)) for _ in range(count)]  # all at once, so that each has its own
    cluster = {"worker": [f"localhost:{each.getsockname()[1]}" for each in sockets]}
    for each in sockets:
        each.close()
    workers = []
    for index in range(count):
        config = json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}})
        workers.append(subprocess.Popen(command, env={**os.environ, "TF_CONFIG": config}, **kwargs))
    return workers


def main() -> int:
    if len(sys.argv) < 3 or not sys.argv[1].isdecimal() or int(sys.argv[1]) < 1:
        raise SystemExit(f"usage: {sys.argv[0]} COUNT COMMAND...")
    workers = start(int(sys.argv[1]), sys.argv[2:])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the workers have the Ctrl-C too
    while all(worker.poll() in (None, 0) for worker in workers) and any(worker.poll() is None for worker in workers):
        time.sleep(1)
    deadline = time.monotonic() + 60  # by then the others have noticed, unless they wait for one that never was there
    for worker in workers:
        try:
            worker.wait(max(0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.terminate()
    return max(abs(worker.wait()) for worker in workers)


if __name__ == "__main__":
    raise SystemExit(main())
