"""How long `memplan doctor` takes over a log of 500 MB, and how much memory: it is read as a stream.

    python benchmarks/doctor/large_log.py [--megabytes 500] [--log "access log"] [--json]

Three logs are made in a temporary folder, each read by the command in a process of its own: a server's access log
with its
statistics and a crash at the end, the same with every line about memory, and one single line without an end.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

_ACCESS = b'INFO:     127.0.0.1:40%03d - "POST /v1/chat/completions HTTP/1.1" 200 OK\n'
_STATS = (
    b"INFO 11-20 10:00:00 [loggers.py:123] Engine 000: Avg prompt throughput: 512.0 tokens/s, Avg generation "
    b"throughput: "
    b"310.2 tokens/s, Running: 48 reqs, Waiting: 3 reqs, GPU KV cache usage: 71.3%, Prefix cache hit rate: 12.0%\n"
)
_HEAD = (
    b"INFO 11-20 09:00:00 [core.py:77] Initializing a V1 LLM engine (v0.11.0) with config: model='Qwen/Qwen3-32B', "
    b"dtype=torch.bfloat16, max_seq_len=40960, tensor_parallel_size=1\nINFO Model loading took 61.0347 GiB and "
    b"20 seconds\n"
    b"INFO Available KV cache memory: 4.45 GiB\nINFO GPU KV cache size: 18,224 tokens\nINFO:     Application "
    b"startup complete.\n"
)
_END = (
    b"torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.50 GiB. GPU 0 has a total capacity of "
    b"79.18 GiB of "
    b"which 1.10 GiB is free. Of the allocated memory 74.00 GiB is allocated by PyTorch, and 1.02 GiB is "
    b"reserved by PyTorch "
    b"but unallocated.\n"
)


def access_log(size: int) -> Iterator[bytes]:
    """A server's day: 60 requests for every line of statistics."""
    block = b"".join(_ACCESS % (number % 1000) for number in range(60)) + _STATS
    yield _HEAD
    yield from (block for _ in range(size // len(block)))
    yield _END


def memory_log(size: int) -> Iterator[bytes]:
    """Every line is one that a reader looks at."""
    block = (_STATS + _END) * 20
    yield _HEAD
    yield from (block for _ in range(size // len(block)))


def one_line(size: int) -> Iterator[bytes]:
    """No line ends, ever."""
    yield _HEAD
    yield from (b"CUDA out of memory " * 50_000 for _ in range(size // 950_000))


LOGS = {"access log": access_log, "every line about memory": memory_log, "one line": one_line}


def measure(path: Path) -> tuple[float, int, str]:
    """Seconds of a processor, the largest resident size in bytes, and the cause that was named."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    code = (
        "import resource, sys\nfrom memplan.__main__ import main\ntry:\n    main()\nfinally:\n"
        "    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "doctor", str(path), "--json", "--offline"], capture_output=True, text=True
    )
    seconds = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
    return seconds, int(done.stderr.strip().splitlines()[-1]) * 1024, str(json.loads(done.stdout)["cause"])


def main() -> None:
    """Measure each log, small and large, so that growth would show."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=500)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--log", choices=LOGS, action="append", help="this one alone")
    asked = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in asked.log or LOGS:
            for megabytes in (max(1, asked.megabytes // 50), asked.megabytes):
                path = Path(folder) / "log"
                with path.open("wb") as stream:
                    for piece in LOGS[name](megabytes * 1_000_000):
                        stream.write(piece)
                seconds, memory, cause = measure(path)
                rows.append(
                    {
                        "log": name,
                        "megabytes": megabytes,
                        "seconds": round(seconds, 1),
                        "memory_bytes": memory,
                        "cause": cause,
                    }
                )
    if asked.json:
        print(json.dumps({"schema": "memplan.doctor-speed/1", "rows": rows}, indent=2))
        return
    for row in rows:
        print(
            f"{row['log']:26} {row['megabytes']:>5} MB {row['seconds']:>7} s "
            f"{int(row['memory_bytes']) / 2**20:>7.1f} MiB  {row['cause']}"
        )


if __name__ == "__main__":
    main()
