"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Data = Annotated[
    Path | None,
    typer.Option(envvar="LOWRANK_BENCH_DATA", help="Folder with local datasets; without it the hub is used."),
]
Out = Annotated[Path, typer.Option(help="Folder for stages and results.")]
Weak = Annotated[bool, typer.Option(help="Run generated code even where only resource limits hold it.")]
Revision = Annotated[str | None, typer.Option(help="40-digit commit of a hub model.")]
Device = Annotated[str, typer.Option(help="torch device; auto takes a GPU where there is one.")]
Engine = Annotated[str, typer.Option(help="What generates and scores: vllm, transformers, or auto.")]
Bos = Annotated[
    str | None,
    typer.Option(
        help="BOS at the start of each window of wikitext2 and c4: never (the GPTQ recipe), always, or auto: as the "
        "model's tokenizer does.  [default: never]"
    ),
]
