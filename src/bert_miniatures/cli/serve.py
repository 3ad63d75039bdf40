"""`miniatures serve`."""

from pathlib import Path
from typing import Annotated

import typer


def serve(
    models: Annotated[list[str], typer.Argument(metavar="MODEL|OUT...", help="or NAME=MODEL; the first is /predict")],
    host: Annotated[str, typer.Option(help="an address of this machine")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one")] = 8000,
    key_file: Annotated[
        Path | None, typer.Option(help="clients send what is in it as bearer key [$MINIATURES_KEY]")
    ] = None,
    int8: Annotated[bool, typer.Option("--int8", help="the 8-bit graph of a deploy folder")] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="of each model [all cores but one]")] = None,
    queue: Annotated[int, typer.Option(min=1, help="texts that may wait for a model")] = 1024,
    texts: Annotated[int, typer.Option(min=1, help="texts a request")] = 256,
    characters: Annotated[int, typer.Option(min=1, help="characters a text")] = 100_000,
    body: Annotated[int, typer.Option(min=1, help="bytes a request")] = 1 << 20,
    batch: Annotated[int, typer.Option(min=1, help="word pieces that are computed together")] = 4096,
    window: Annotated[float, typer.Option(min=0, help="milliseconds that a batch waits for company")] = 2.0,
    timeout: Annotated[float, typer.Option(min=0.01, help="seconds to an answer")] = 10.0,
    connections: Annotated[int, typer.Option(min=1, help="that are open at once")] = 1000,
    offline: Annotated[bool, typer.Option("--offline", help="open no socket but the one that is served")] = False,
) -> None:
    """Answer texts over HTTP: a page to try it at /, /predict, the Open Inference Protocol, /metrics, /docs."""
    from bert_miniatures.cli.console import ConsoleWatch
    from bert_miniatures.errors import MissingExtra
    from bert_miniatures.serve.limits import Limits

    limits = Limits(
        body=body,
        texts=texts,
        characters=characters,
        queue=queue,
        batch=batch,
        window=window / 1000,
        timeout=timeout,
        connections=connections,
    )
    key = _key(key_file)
    try:
        from bert_miniatures.serve.running import serve as run
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("bert_miniatures"):
            raise
        raise MissingExtra("serving", "deploy") from None
    precision = "int8" if int8 else "fp32"
    with ConsoleWatch() as watch:
        run(models, host=host, port=port, limits=limits, threads=threads, precision=precision, key=key, watch=watch)


def _key(file: Path | None) -> str | None:
    """Return the key; never from an argument, which every user of the machine can read."""
    import os

    from bert_miniatures.errors import UserError

    where, key = "$MINIATURES_KEY", os.environ.get("MINIATURES_KEY")
    if file is not None:
        where = str(file)
        try:
            key = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{file}: the key cannot be read ({getattr(error, 'strerror', None) or error})") from None
    if key is None:
        return None
    if not key.strip() or not key.strip().isascii() or len(key.split()) > 1:
        raise UserError(f"{where}: a key is one word of ASCII characters")
    return key.strip()
