"""`miniatures push`."""

from typing import Annotated

import typer


def push(
    source: Annotated[str, typer.Argument(metavar="MODEL|RUN", help="model, deploy or run folder")],
    repository: Annotated[str, typer.Argument(metavar="REPOSITORY", help="as me/support-tiny")],
    public: Annotated[bool, typer.Option("--public", help="everybody may see a repository that is made")] = False,
    message: Annotated[str, typer.Option("--message", "-m", help="of the commit")] = "",
    offline: Annotated[bool, typer.Option("--offline", help="open no socket")] = False,
) -> None:
    """Send a model to the Hugging Face Hub, in one commit; a repository that does not exist is made, private."""
    from bert_miniatures.push import push as send

    print(send(source, repository, public=public, message=message))
