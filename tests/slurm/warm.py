"""tools/train.py without its seven seconds of imports: runs are forked from a process that has made them.

    python tests/slurm/warm.py SOCKET                      serves
    python tests/slurm/warm.py SOCKET CONFIG [--key ...]   is one run: its output, its exit code and its death

A signal to the second is one to the run, and when it is killed the run kills itself.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Sequence


def serve(path: str) -> None:
    sys.path.insert(0, os.getcwd())
    from tools import train
    from vpeft import cli, run

    assert run.train  # imported here, once
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the runs
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(path)
        door.listen(64)
        while True:
            line, _ = door.accept()
            if os.fork():
                line.close()
                continue
            os.setsid()  # as Slurm does for a task
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            door.close()
            _become(line)
            try:
                cli.run(train.main)
            except SystemExit as end:
                sys.stdout.flush()
                line.sendall(bytes([end.code if isinstance(end.code, int) else 1]))
            finally:
                os._exit(0)


def _become(line: socket.socket) -> None:
    message, files, *_ = socket.recv_fds(line, 1 << 20, 2)
    said = json.loads(message)
    for target, file in enumerate(files, start=1):
        os.dup2(file, target)
    os.environ.clear()
    os.environ.update(said["environment"])
    os.chdir(said["folder"])
    sys.argv[:] = ["tools/train.py", *said["words"]]
    threading.Thread(target=_obey, args=[line], daemon=True).start()


def _obey(line: socket.socket) -> None:
    for number in iter(lambda: line.recv(1), b""):
        os.kill(os.getpid(), number[0])
    os.kill(os.getpid(), signal.SIGKILL)


def be(path: str, words: Sequence[str]) -> int:
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(path)
        message = json.dumps({"words": list(words), "folder": os.getcwd(), "environment": dict(os.environ)}).encode()
        socket.send_fds(line, [message], [1, 2])
        for number in (signal.SIGUSR1, signal.SIGTERM):
            signal.signal(number, lambda number, frame: line.sendall(bytes([number])))
        if code := line.recv(1):
            return code[0]
    os.kill(os.getpid(), signal.SIGKILL)  # as the run was
    return 1


if __name__ == "__main__":
    sys.exit(be(sys.argv[1], sys.argv[2:]) if sys.argv[2:] else serve(sys.argv[1]))
