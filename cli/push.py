"""bench push: a factorised checkpoint onto a hub, with its model card."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .output import console
from .serving import CHECKPOINT, Seed


def push(
    checkpoint: Annotated[str, typer.Argument(help=CHECKPOINT)],
    repository: Annotated[str, typer.Argument(help="OWNER/NAME on the hub; made, and private, where it is missing.")],
    evaluation: Annotated[
        list[Path] | None, typer.Option(help="Folder of bench eval --out of this checkpoint; may be given again.")
    ] = None,
    base_model: Annotated[
        str | None, typer.Option(help="Hub id of the model that was compressed. \\[default: the preset's]")
    ] = None,
    licence: Annotated[
        str | None, typer.Option("--license", help="The hub's name of its licence. \\[default: the preset's]")
    ] = None,
    seed: Seed = None,
    public: Annotated[bool, typer.Option("--public", help="Make a new repository public.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print all that would be sent, and send nothing.")] = False,
) -> None:
    """Upload a factorised checkpoint with a model card made from its records."""
    from ..results.publishing.push import prepare
    from ..results.publishing.push import push as upload

    publication = prepare(checkpoint, repository, base_model, licence, evaluation or (), seed)
    screen = console()

    def say(text: str) -> None:
        screen.print(text, markup=False, highlight=False, soft_wrap=True)

    if dry_run:
        say(f"repository  {repository}, {'public' if public else 'private'} if it is new")
        for path, file in publication.files.items():
            say(f"file        {path}, {file.stat().st_size:,} bytes")
        for path, text in publication.texts.items():
            say(f"\n{path}:\n\n{text}")
        return
    page, commit = upload(publication, public)
    say(f"repository  {page}\ncommit      {commit}")
    say(f"bench eval {repository} --revision {commit} --benchmarks … takes it back")


def add_to(app: typer.Typer) -> None:
    """Add this command to the command line."""
    app.command()(push)
