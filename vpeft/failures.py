"""What a machine does to a run, in a sentence: too little memory, a process that is killed, a lost connection."""

from __future__ import annotations

import re

_RESUME = "A run goes on from its last checkpoint with --train.resume true."
_SMALLER = (
    "Lower data.batch_size (train.accumulate makes up for it) or data.workers, or let fewer programs run at once, as a "
    "suite does with a smaller --jobs or --pack."
)
# Words of gloo, of NCCL and of torch's store where another process is gone; a hub or a server may say some of them too.
_CLOSED = re.compile(
    r"Connection (closed|reset) by peer|Broken pipe|Read error|Socket Timeout|Connection refused|"
    r"NCCL error(?!.*invalid (usage|argument))|ncclRemote",
    re.DOTALL,
)
_OF_TORCH = re.compile(r"gloo|nccl|c10d|TCPStore|SocketImpl|socket\.cpp", re.IGNORECASE)
_SILENT = re.compile(
    r"Timed out waiting \d+ms|Timed out after \d+ seconds waiting for clients|client socket has timed out|"
    r"[Ww]atchdog caught collective operation timeout|wait timeout"
)
_WORKER = re.compile(
    r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (?:is killed by signal: (.*?)\.|exited unexpectedly)"
)


def said(error: BaseException) -> str | None:
    """The sentence of an error that is the machine's; None of any other."""
    text = str(error)
    if out_of_memory(error):
        return _memory(error, text)
    if not isinstance(error, RuntimeError):
        return None
    if worker := _WORKER.search(text):
        return _worker(*worker.groups())
    if lost(error):
        what = "does not answer" if _SILENT.search(text) else "has ended"
        return (
            f"Another process of this run {what}; its own last words, or those of what started it, say why. {_RESUME}"
        )
    return None


def out_of_memory(error: BaseException) -> bool:
    """Whether memory was short, of the machine or of a GPU."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    known = ("DefaultCPUAllocator: ", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "Cannot allocate memory")
    return isinstance(error, RuntimeError | OSError) and any(words in str(error) for words in known)


def lost(error: BaseException) -> bool:
    """Whether torch says that another process of the same run is gone or does not answer."""
    text = str(error)
    closed = _CLOSED.search(text) and _OF_TORCH.search(text)
    return isinstance(error, RuntimeError) and bool(closed or _SILENT.search(text))


def _memory(error: BaseException, text: str) -> str:
    asked = re.search(
        r"tried to allocate (\d+) bytes|Tried to allocate ([\d.]+ \w+)|Unable to allocate ([\d.]+ \w+)", text
    )
    amount = next((one for one in asked.groups() if one), None) if asked else None
    if amount and amount.isdecimal():
        amount = f"{int(amount) / 2**20:,.0f} MiB"
    where = "a GPU" if "CUDA" in text or "CUBLAS" in text else "this machine or its container"
    if isinstance(error, MemoryError) and text and not asked:
        return text.rpartition("MemoryError: ")[2].strip()  # worded already, maybe within a worker's traceback
    return f"Out of memory of {where}{f': {amount} more could not be had' if amount else ''}. {_SMALLER}"


def _worker(number: str, signal: str | None) -> str:
    if signal and "Bus error" in signal:
        return (
            f"The process that loads data (pid {number}) ran out of shared memory: give the container a larger "
            f"/dev/shm (docker: --shm-size), or lower data.workers. {_RESUME}"
        )
    how = f"was ended by a signal ({signal})" if signal else "ended unexpectedly"
    return (
        f"The process that loads data (pid {number}) {how}, most often because memory ran out: lower data.workers, or "
        f"free some memory. {_RESUME}"
    )
