"""Bytes that the kernels of a compiled program read and write, counted in its optimised form."""

import math
import re

# Operations that move no bytes, because they only rename buffers.
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"}
_INSTRUCTION = re.compile(r"\s*(?:ROOT )?%([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)")
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")
_SHORT = {"pred": 1, "f32": 4, "f64": 8, "bf16": 2, "f16": 2}


def bytes_moved(program: str) -> int | None:
    """The operands and results of every kernel, each once; `None` if the program has loops or branches.

    Args:
      program: `compiled.as_text()`.
    """
    sizes, total = {}, 0
    for line in program[program.index("\nENTRY ") :].splitlines()[2:]:
        found = _INSTRUCTION.match(line)
        if found is None:
            continue
        name, shape, opcode, rest = found.groups()
        if opcode in ("while", "conditional", "call"):
            return None
        sizes[name] = sum(map(_num_bytes, _ARRAY.findall(shape)))
        if opcode not in _FREE:
            operands = re.findall(r"%([\w.\-]+)", rest.partition(")")[0])
            total += sizes[name] + sum(sizes[operand] for operand in operands)
    return total


def _num_bytes(array: tuple[str, str]) -> int:
    kind, shape = array
    bits = re.search(r"\d+$", kind)
    itemsize = _SHORT.get(kind) or (int(bits[0]) // 8 if bits else 1)
    return itemsize * math.prod(int(side) for side in shape.split(",") if side)
