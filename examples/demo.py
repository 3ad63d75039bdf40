"""The demo: fine-tune the starter on 2,915 support messages, look at the scores, answer new messages.

    make demo

Each step is a command that you can type yourself; it is printed before it runs. Nothing is fetched.
"""

import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
RUN = HERE.parent / ".demo" / "support"
NEW = [
    "It says delivered but there is nothing at my door.",
    "you charged my card twice for the same lamp",
    "Does the tent fit two adults and a dog?",
    "the screen was cracked when i opened the box",
    "I moved last week, please send it to the new flat instead",
]


def say(*command: str, text: str | None = None) -> None:
    """Print a command and run it; stop the demo if it fails."""
    shown = shlex.join(["miniatures", *command]).replace(f"{Path.cwd()}{os.sep}", "")
    print(f"\n$ {shown}", flush=True)
    done = subprocess.run([sys.executable, "-m", "bert_miniatures", *command], input=text, text=True)
    if done.returncode:
        sys.exit(done.returncode)


def main() -> None:
    """Run the demo."""
    started = time.monotonic()
    train, dev = HERE / "support" / "train.csv", HERE / "support" / "dev.csv"
    say("finetune", "--model", "starter", "--train", str(train), "--dev", str(dev), "--out", str(RUN),
        "--batch-size", "16", "--learning-rate", "1e-3", "--epochs", "10", "--overwrite")  # fmt: skip
    say("evaluate", str(RUN))
    print("\n$ printf '%s\\n' \\\n" + "\n".join(f"    {shlex.quote(text)} \\" for text in NEW), end="")
    print(f"\n  | miniatures predict {RUN.relative_to(Path.cwd()) if RUN.is_relative_to(Path.cwd()) else RUN}")
    lines = "\n".join(NEW) + "\n"
    subprocess.run([sys.executable, "-m", "bert_miniatures", "predict", str(RUN)], input=lines, text=True, check=True)
    print(f"\nAll in {time.monotonic() - started:.0f} s. The run is in {RUN}: result.json has the scores,")
    print("model/ opens in transformers too. Try your own CSV: miniatures finetune --train FILE ... (docs/data.md).")


if __name__ == "__main__":
    main()
