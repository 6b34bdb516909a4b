"""Start several workers on one machine: the same command several times, each time with its own TF_CONFIG.

    python examples/workers.py 2 gpt2-tf train texts/ --out my-run --strategy multi-worker

On several machines, set TF_CONFIG on each to the same cluster, with the index of that machine. When a worker fails, the
others report it and stop. To resume, run the same command with `--init-from resume` and without the files.
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
    """Start the processes of `count` workers, and return them; `kwargs` are for `subprocess.Popen`."""
    # All sockets are open at the same time, so each gets a port of its own.
    sockets = [socket.create_server(("localhost", 0)) for _ in range(count)]
    cluster = {"worker": [f"localhost:{server.getsockname()[1]}" for server in sockets]}
    for server in sockets:
        server.close()
    workers = []
    for index in range(count):
        config = json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}})
        workers.append(subprocess.Popen(command, env={**os.environ, "TF_CONFIG": config}, **kwargs))
    return workers


def main() -> int:
    if len(sys.argv) < 3 or not sys.argv[1].isdecimal() or int(sys.argv[1]) < 1:
        raise SystemExit(f"usage: {sys.argv[0]} COUNT COMMAND...")
    workers = start(int(sys.argv[1]), sys.argv[2:])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the workers themselves
    while all(worker.poll() in (None, 0) for worker in workers) and any(worker.poll() is None for worker in workers):
        time.sleep(1)
    # TensorFlow notices a lost worker within a minute, unless it still waits for all workers to start.
    deadline = time.monotonic() + 60
    for worker in workers:
        try:
            worker.wait(max(0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.terminate()
    return max(abs(worker.wait()) for worker in workers)


if __name__ == "__main__":
    raise SystemExit(main())
