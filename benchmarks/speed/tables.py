"""The speed benchmark's results as tables: of one case for the terminal, of one or more runs for a page."""

from rich.table import Table

from benchmarks.common import reporting
from benchmarks.speed.cases import ALL_CASES
from benchmarks.speed.workers import BEFORE


def markdown(*results: dict) -> str:
    """Results as one Markdown table: jaxmaml's own figures, and how many times as long the others take.

    Both times of a ratio are of the same run. If several runs have a case, the last that has the implementation counts,
    and jaxmaml's own figures are those of the last run.
    """
    last, multiples = {}, {}
    for result in results:
        for case, rows in ((case, measured["rows"]) for case, measured in result["cases"].items()):
            if any(name.startswith("jaxmaml") for name in rows):  # It may not have been prepared in time.
                last[case] = result
                ours = rows[fastest(rows)]["median_ms"]
                multiples |= {(case, name): row["median_ms"] / ours for name, row in rows.items()}
    named = dict.fromkeys(name for result in results for name in implementations_of(result))
    others = [n for n in named if not n.startswith("jaxmaml") and any((case, n) in multiples for case in last)]
    copies = any("bytes_moved" in row for case in last for row in last[case]["cases"][case]["rows"].values())
    columns = ["ms", "% of peak matmul", *(["% of peak copy"] if copies else []), "MB", "compile s", *others]
    lines = ["| outer step | " + " | ".join(columns) + " |", "| --- |" + " --: |" * len(columns)]
    for case in sorted(last, key=list(ALL_CASES).index):
        result, rows = last[case], last[case]["cases"][case]["rows"]
        best = fastest(rows)
        ours = rows[best]
        seconds = ours["median_ms"] / 1e3
        batched = list(result["product_flops_per_second"].values())[-1]
        cells = [
            reporting.short(ours["median_ms"]),
            f"{100 * result['cases'][case]['flops'] / seconds / batched:.0f}%",
        ]
        if copies:
            moved = ours.get("bytes_moved")
            cells.append(f"{100 * moved / seconds / result['copy_bytes_per_second']:.0f}%" if moved else "-")
        cells += [reporting.short(ours["memory_bytes"] / 1e6), f"{ours['compile_seconds']:.1f}"]
        cells += [_times(multiples[case, name]) if (case, name) in multiples else "-" for name in others]
        mark = {"jaxmaml_mesh": " (mesh)", "jaxmaml_one_thread": " (one thread)"}.get(best, "")
        lines.append(f"| {case}{mark} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def variants(*results: dict) -> str:
    """The time of each variant of the first implementation, divided by the time of that implementation."""
    columns, rows = {}, {}
    for result in results:
        first = implementations_of(result)[0]
        for case, measured in result["cases"].items():
            times = {name.removeprefix(first): row["median_ms"] for name, row in measured["rows"].items()}
            rows[case] = {name: time / times[""] for name, time in times.items() if name.startswith("_")}
            columns |= dict.fromkeys(rows[case])
    lines = ["| outer step | " + " | ".join(columns) + " |", "| --- |" + " --: |" * len(columns)]
    for case in sorted(rows, key=list(ALL_CASES).index):
        cells = [f"{rows[case][name]:.2f}" if name in rows[case] else "-" for name in columns]
        lines.append(f"| {case} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def implementations(case: str, measured: dict, rates: dict[str, float]) -> Table:
    """One case of a run, with one row for each implementation."""
    batched = list(rates.values())[-1]
    view = Table(title=case)
    for column in ("", "median ms", "quartiles", "times", "compile s", "memory MB", "GFLOP/s", "of batched", "GB/s"):
        view.add_column(column, justify="right" if column else "left")
    rows = measured["rows"]
    best = rows[fastest(rows)]["median_ms"] if rows else None
    for name, row in rows.items():
        rate = measured["flops"] / row["median_ms"] * 1e3
        view.add_row(
            name,
            f"{row['median_ms']:.4g}",
            "{:.4g} - {:.4g}".format(*row["quartiles_ms"]),
            f"{row['median_ms'] / best:.2f}",
            f"{row['compile_seconds']:.1f}",
            f"{row['memory_bytes'] / 1e6:.4g}",
            f"{rate / 1e9:.1f}",
            f"{100 * rate / batched:.0f}%",
            f"{row['bytes_moved'] / row['median_ms'] / 1e6:.0f}" if "bytes_moved" in row else "-",
        )
    return view


def _times(ratio: float) -> str:
    return f"{ratio:.3g}x" if ratio < 1000 else f"{ratio:.0f}x"


def fastest(rows: dict[str, dict]) -> str:
    """The fastest of jaxmaml's rows, or of all rows if there are none of jaxmaml's."""
    ours = [name for name in rows if name.startswith("jaxmaml") and not name.endswith(BEFORE)]
    return min(ours or rows, key=lambda name: rows[name]["median_ms"])


def implementations_of(result: dict) -> list[str]:
    """The implementations of a run; result files of earlier versions call them contenders."""
    config = result["config"]
    return config["implementations"] if "implementations" in config else config["contenders"]
