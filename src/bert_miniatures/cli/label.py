"""`miniatures label`."""

from pathlib import Path
from typing import Annotated

import typer


def label(
    teacher: Annotated[str, typer.Argument(help="a model folder or run with a classifier, or a file of its answers")],
    files: Annotated[list[Path] | None, typer.Argument(help="texts: .csv .tsv .jsonl .parquet .txt")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="the file to write (.parquet)")] = Path("logits.parquet"),
    also: Annotated[list[str] | None, typer.Option("--and", help="another teacher; answers are averaged")] = None,
    task: Annotated[str | None, typer.Option(help="cola sst2 mrpc stsb qqp mnli qnli rte wnli")] = None,
    glue: Annotated[Path | None, typer.Option(help="folder with GLUE [$GLUE_DIR, the cache, the Hub]")] = None,
    split: Annotated[list[str] | None, typer.Option(help="of the task [train and dev]")] = None,
    text: Annotated[str | None, typer.Option(help="column of the text")] = None,
    pair: Annotated[str | None, typer.Option(help="column of the second text")] = None,
    kind: Annotated[str | None, typer.Option(help="multilabel, for probabilities that do not sum to one")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on where it was stopped")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace --out")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print what was done as JSON")] = False,
    offline: Annotated[bool, typer.Option("--offline", help="open no socket")] = False,
) -> None:
    """Let a teacher answer texts once, for 'miniatures distill'."""
    from importlib.util import find_spec

    from bert_miniatures.cli.console import ConsoleWatch, emit_json
    from bert_miniatures.files import training_extra
    from bert_miniatures.recipes.label import label as run

    with training_extra("labelling"):
        if find_spec("torch") is None:
            raise ModuleNotFoundError("No module named 'torch'", name="torch")
    with ConsoleWatch() as watch:
        done = run(
            [teacher, *(also or [])], out, files=files or [], task=task, glue=glue, splits=split or [], text=text,
            pair=pair, kind=kind, resume=resume, overwrite=overwrite, watch=watch,
        )  # fmt: skip
    if as_json:
        emit_json(done)
        return
    labels = ", ".join(done["labels"]) or "score"
    print(f"{out}: {done['rows']:,} rows ({labels}), {done['seconds']:.0f} s")
