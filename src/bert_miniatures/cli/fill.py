"""`miniatures fill`: the words behind [MASK]."""

from typing import Annotated, Any

import typer

__all__ = ["fill"]


def fill(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A nickname, size, official name or model folder.")],
    texts: Annotated[
        list[str] | None,
        typer.Argument(metavar="TEXT", help="With [MASK] where words are missing; lines of standard input if none."),
    ] = None,
    top: Annotated[int, typer.Option(help="Guesses for each [MASK].")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Open no socket.")] = False,
) -> None:
    """Guess the words behind [MASK]: 'Paris is the [MASK] of France.'"""
    from bert_miniatures.cli.console import emit_json, lines_of_stdin
    from bert_miniatures.files import training_extra
    from bert_miniatures.tokenizer import replace_surrogates

    with training_extra("filling in"):
        from bert_miniatures.recipes.filling import Filler
    filler, found = Filler(model), list[dict[str, Any]]()
    for text in texts or lines_of_stdin():
        masks = filler(text, top)
        if as_json:
            found.append({"text": replace_surrogates(text), "masks": masks})
            continue
        print(replace_surrogates(text))
        for number, guesses in enumerate(masks, start=1):
            for guess in guesses:
                print(f"{f'{number}  ' if len(masks) > 1 else ''}{guess['score']:.4f}  {guess['piece']}")
    if as_json:
        emit_json({"texts": found})
