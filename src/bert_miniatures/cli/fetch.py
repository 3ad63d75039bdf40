"""`miniatures fetch` and `miniatures convert`: weights from wherever they are to a model folder."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from bert_miniatures.checkpoint import Conversion

_SHOWN = 5  # names of skipped tensors; --json lists them all

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the folder that is there.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


def fetch(
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="tiny, 2/128, uncased_L-2_H-128_A-2, ...; none for a bundle")
    ] = None,
    source: Annotated[
        str | None, typer.Option("--from", metavar="hub|google", help="Where from; otherwise what is near, then both.")
    ] = None,
    archive: Annotated[
        Path | None, typer.Option(metavar="PATH", help="A .zip, .tar.gz, folder or bundle on this machine instead.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Model folder to make; otherwise in the cache.")
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Open no socket.")] = False,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Get the weights of one of the 24, or what a bundle holds, and make a folder; print the folder's path."""
    from bert_miniatures import models
    from bert_miniatures.cli.console import emit_json, note
    from bert_miniatures.errors import UnknownName, UserError
    from bert_miniatures.zoo import lookup

    if source not in {None, "hub", "google"}:
        raise UnknownName("source", str(source), ["hub", "google"])
    if source and archive:
        raise UserError("--from and --archive exclude each other: an archive is a source of its own")
    if model is None:
        _open_bundle(archive, out, overwrite=overwrite, json=json)
        return
    known = lookup(model)
    got = models.obtain(
        known,
        out or models.converted(known),
        source=source,  # type: ignore[arg-type]
        archive=archive,
        offline=offline or None,
        overwrite=overwrite,
    )
    if json:
        emit_json(
            {"model": known.official, "size": known.size, "path": str(got.path), "source": got.source}
            | _document(got.conversion)
        )
        return
    if got.conversion is None:
        note("already there; --overwrite makes it again")
    else:
        note("\n".join(_lines(got.conversion)))
    print(got.path)


def _open_bundle(archive: Path | None, out: Path | None, *, overwrite: bool, json: bool) -> None:
    from bert_miniatures.bundle import unbundle
    from bert_miniatures.cli.console import emit_json, note
    from bert_miniatures.errors import UserError

    if archive is None:
        raise UserError(
            "which model? 'miniatures models' lists the 24; a bundle is opened with --archive FILE --out DIR"
        )
    if out is None:
        raise UserError(f"where to? give --out DIR for what {archive} holds, or the name of one of the 24 before it")
    document = unbundle(archive, out, overwrite=overwrite)
    if json:
        emit_json({"path": str(out), "kind": document["kind"], "name": document["name"], "source": str(archive)})
        return
    note(f"{document['kind']} {document['name']}: {len(document['files'])} files, each as it was packed")
    print(out)


def convert(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="Hugging Face folder, TensorFlow checkpoint, or ours.")],
    target: Annotated[Path, typer.Argument(metavar="DST", help="Model folder to make.")],
    half: Annotated[bool, typer.Option("--half", help="Numbers of 16 bits: half the bytes on the disk.")] = False,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Turn a checkpoint into a model folder that this package and transformers open."""
    from bert_miniatures.checkpoint import convert as convert_folder
    from bert_miniatures.cli.console import emit_json
    from bert_miniatures.errors import UserError

    if source.is_file() and source.name.endswith((".zip", ".gz", ".tgz")):
        raise UserError(f"{source} is an archive; 'miniatures fetch MODEL --archive {source} --out {target}' opens it")
    done = convert_folder(source, target, half=half, overwrite=overwrite)
    if json:
        emit_json({"path": str(target)} | _document(done))
        return
    print("\n".join([f"{target}", *_lines(done)]))


def _document(conversion: "Conversion | None") -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(conversion) if conversion else {"source_format": None, "tensors": None, "skipped": [], "repaired": []}


def _lines(conversion: "Conversion") -> list[str]:
    lines = [f"{conversion.tensors} tensors, read as {conversion.source_format}"]
    if conversion.skipped:
        more = len(conversion.skipped) - _SHOWN
        shown = ", ".join(conversion.skipped[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
        lines.append(f"skipped {len(conversion.skipped)}: {shown}")
    return lines + [f"repaired: {sentence}" for sentence in conversion.repaired]
