"""Times one contender in a process of its own; spoken to by benchmarks.meta_step, a JSON line a word.

    python -m benchmarks.worker CASE CONTENDER RESULT.npz

Says what it compiled, and then, at each line it reads, takes steps for about that many seconds and says how long each
run of steps took.
"""

import json
import pathlib
import sys
import time

import numpy as np

from benchmarks.cases import CASES
from benchmarks.contenders import flat, prepare


def main(case: str, name: str, path: pathlib.Path) -> None:
    contender = prepare(name, CASES[case])
    loss, grads = contender.result()
    np.savez(path, loss=loss, grads=flat(grads))
    memory, how = contender.memory()
    say = {"compile_seconds": contender.compile_seconds, "memory_bytes": memory, "memory_is": how}
    print(json.dumps(say), flush=True)
    if contender.steps_per_run > 1:  # Else the result was the warm-up.
        contender.run()
    for line in sys.stdin:
        seconds, end = [], time.perf_counter() + float(line)
        while not seconds or time.perf_counter() < end:
            start = time.perf_counter()
            contender.run()
            seconds.append((time.perf_counter() - start) / contender.steps_per_run)
        print(json.dumps(seconds), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], pathlib.Path(sys.argv[3]))
