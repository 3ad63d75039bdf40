"""How far the model of `miniatures choose` is off, on models that it did not measure.

    python benchmarks/choose_accuracy.py                     all 24, both precisions
    python benchmarks/choose_accuracy.py --model 4/128 ...   only these beside those that `choose` measures

Each model is measured as `choose` measures it, in a process of its own and in two visits, one after all others had
theirs; the shorter times count. Those of `choose`'s list are then given to the model, and what it says of the others is
compared with what was measured. Nothing else may run meanwhile: the first two models are measured again at the end, and
their change says how quiet the machine was.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

from bert_miniatures.choose.measuring import PRECISIONS, Measured, measured, plan_of, quieter
from bert_miniatures.choose.profile import Profile, of_file, of_number
from bert_miniatures.choose.survey import CALLS, MEASURED, VISITS, predicted, row_of
from bert_miniatures.machine import cores, instructions
from bert_miniatures.zoo import ZOO, Miniature

QUANTITIES = ("p50", "p95", "rate", "memory")
Found = dict[str, dict[Miniature, Measured]]


def main() -> None:
    """Measure, compare, write a JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", default="32", help="a number of word pieces, or a file with texts")
    parser.add_argument("--model", action="append", choices=list(ZOO), help="a model to compare; default: all")
    parser.add_argument(
        "--given", nargs="+", default=list(MEASURED), choices=list(ZOO), help="what the model is fitted to"
    )
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, cores()}))
    parser.add_argument("--seconds", type=float, default=CALLS / VISITS, help="of calls with one text, a visit")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "choose_accuracy.json")
    asked = parser.parse_args()
    profile = of_number(int(asked.lengths)) if asked.lengths.isdecimal() else of_file(Path(asked.lengths), 128)
    plan = plan_of(profile, asked.threads, asked.seconds)
    sizes = list(dict.fromkeys([*asked.given, *(asked.model or ZOO)]))
    found: Found = {precision: {} for precision in PRECISIONS}
    for model, precision in [(ZOO[size], precision) for size in sizes for precision in PRECISIONS] * VISITS:
        known, now = found[precision], measured(model, precision, plan)
        known[model] = quieter(known[model], now) if model in known else now
        print(f"{model.size} {precision}: p50 {1000 * now.p50[asked.threads[0]]:.3f} ms", flush=True)
    drift = _drift(found, plan, asked.given[:2])
    rows = _compared(found, plan, profile, asked.given)
    _print(rows, drift)
    document = {"date": time.strftime("%Y-%m-%d"), "machine": f"{instructions()}, {cores()} cores", "rows": rows}
    document |= {"lengths": profile.said, "given": asked.given, "measured_again_change": drift}
    document["measured"] = {precision: _raw(known) for precision, known in found.items()}
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps(document, indent=1) + "\n")


def _raw(known: dict[Miniature, Measured]) -> dict:
    """Return size -> threads -> "rows x positions" of a call -> seconds: another model of time can be tried on them."""
    return {
        model.size: {n: {f"{rows}x{width}": t for (rows, width), t in its.items()} for n, its in one.times.items()}
        for model, one in known.items()
    }


def _drift(found: Found, plan, sizes: list[str]) -> float:
    """Return the largest change of a median when models are measured again at the end."""
    changes = []
    for size in sizes:
        for precision in PRECISIONS:
            before, after = found[precision][ZOO[size]], measured(ZOO[size], precision, plan)
            changes += [abs(after.p50[n] / before.p50[n] - 1) for n in plan.threads]
    return max(changes)


def _compared(found: Found, plan, profile: Profile, given: list[str]) -> list[dict]:
    """Return a row for each model, precision and number of threads that the model of time was not given."""
    rows = []
    for precision, known in found.items():
        basis = {ZOO[size]: known[ZOO[size]] for size in given}
        others = [model for model in known if model not in basis]
        for threads in plan.threads:
            for guess in predicted(others, precision, threads, basis, plan, profile):
                truth = row_of(guess.model, precision, threads, known[guess.model], plan)
                values = {name: [getattr(truth, name), getattr(guess, name)] for name in QUANTITIES}
                rows.append({"size": guess.model.size, "precision": precision, "threads": threads} | values)
    return rows


def _print(rows: list[dict], drift: float) -> None:
    print(f"\nmedians of models that were measured again: at most {drift:.0%} from before\n")
    print("| model | | threads | " + " | ".join(f"{name} measured | modelled | error" for name in QUANTITIES) + " |")
    print("|---" * (3 + 3 * len(QUANTITIES)) + "|")
    scale = {"p50": 1000, "p95": 1000, "rate": 1, "memory": 1e-6}
    for row in rows:
        cells = [row["size"], row["precision"], str(row["threads"])]
        for name in QUANTITIES:
            truth, guess = row[name]
            cells += [f"{scale[name] * truth:.3g}", f"{scale[name] * guess:.3g}", f"{guess / truth - 1:+.0%}"]
        print("| " + " | ".join(cells) + " |")
    for name in QUANTITIES:
        errors = [abs(row[name][1] / row[name][0] - 1) for row in rows]
        print(f"\n{name}: median error {statistics.median(errors):.1%}, largest {max(errors):.1%}, "
              f"{sum(error > 0.2 for error in errors)} of {len(errors)} over 20 %", end="")  # fmt: skip
    print()


if __name__ == "__main__":
    main()
