"""``publish``: put a model on a model hub."""

from pathlib import Path
from typing import Annotated

import typer

from tagrank.cli.app import Model, command, find_model
from tagrank.errors import InputError


@command("tagrank publish models/photos ORG/NAME --license cc-by-4.0")
def publish(
    model: Model,
    repo: Annotated[
        str, typer.Argument(help="ORG/NAME on the hub; it is made if it does not exist.", show_default=False)
    ],
    license: Annotated[
        str | None, typer.Option(help="Licence of the model, such as apache-2.0; the model card does not guess.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="A sentence on the photographs and lists of the training, for the model card.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="The branch. Default: main.")] = None,
    private: Annotated[
        bool | None, typer.Option("--private/--public", help="Who may read a new model. Default: what the hub says.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Only write what would be published to this folder, to look at it.")
    ] = None,
) -> None:
    """Put a model on a model hub, with a model card.

    The hub is https://huggingface.co, or the one that HF_ENDPOINT names; `hf auth login` gives the permission to write.
    Safetensors, JSON and the card are published, no photograph. What `tagrank evaluate --json MODEL/evaluation.json`
    has written is in the card. The name of what was published is printed; `tagrank annotate` takes it as MODEL.
    """
    folder = find_model(model)
    from tagrank.annotator import Annotator
    from tagrank.model_hub import split_name

    name, _ = split_name(repo, revision)
    if out is not None and out.exists() and not out.samefile(folder) and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"--out: expected a folder that is empty or not there, got {out}")
    annotator = Annotator.load(folder)
    if out is not None:
        annotator.save_pretrained(out, license=license, data=data, name=name)
        typer.echo(out)
    else:
        typer.echo(annotator.push_to_hub(repo, license=license, data=data, revision=revision, private=private))
