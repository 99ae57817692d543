"""Times one implementation in its own process, which benchmarks.meta_step controls by lines of JSON.

    python -m benchmarks.speed.worker CASE IMPLEMENTATION RESULT.npz

Prints a line when it is prepared. On `check` it writes its loss and gradients and prints its costs; on a number it
takes steps for about that many seconds and prints the time of each run.
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
