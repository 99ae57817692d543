"""Times one implementation in a process of its own; spoken to by benchmarks.meta_step, a JSON line a word.

    python -m benchmarks.speed.worker CASE IMPLEMENTATION RESULT.npz

Says when it is prepared. At `check` it writes its loss and gradients and says what it cost; at a number it takes steps
for about that many seconds and says how long each run of steps took.
"""

import json
import pathlib
import sys
import time

import numpy as np

from benchmarks.speed.cases import CARD_CASES, CASES
from benchmarks.speed.implementations import prepare
from benchmarks.speed.programs import flat


def main(case: str, name: str, path: pathlib.Path) -> None:
    implementation = prepare(name, {**CASES, **CARD_CASES}[case])
    print(json.dumps({"prepared": name}), flush=True)
    for line in sys.stdin:
        if line.strip() == "check":
            loss, grads = implementation.result()
            np.savez(path, loss=loss, grads=flat(grads))
            if implementation.steps_per_run > 1:  # Else the result was the warm-up.
                implementation.run()
            print(json.dumps(implementation.costs()), flush=True)
            continue
        seconds, end = [], time.perf_counter() + float(line)
        while not seconds or time.perf_counter() < end:
            start = time.perf_counter()
            implementation.run()
            seconds.append((time.perf_counter() - start) / implementation.steps_per_run)
        print(json.dumps(seconds), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], pathlib.Path(sys.argv[3]))
