"""`miniatures bundle`."""

from pathlib import Path
from typing import Annotated

import typer


def bundle(
    source: Annotated[str, typer.Argument(metavar="MODEL|RUN", help="nickname, model, deploy or run folder")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="the zip")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace the file that is there")] = False,
    offline: Annotated[bool, typer.Option("--offline", help="open no socket")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print what bundle.json in it says")] = False,
) -> None:
    """Pack a model or a run into one file with checksums; 'miniatures fetch --archive FILE --out DIR' opens it."""
    from bert_miniatures.bundle import bundle as pack
    from bert_miniatures.cli.console import emit_json, note

    document = pack(source, out, overwrite=overwrite)
    if as_json:
        emit_json(document)
        return
    files = document["files"]
    note(
        f"{document['kind']} {document['name']}: {len(files)} files, {sum(f['bytes'] for f in files.values()):,} bytes"
    )
    print(out)
