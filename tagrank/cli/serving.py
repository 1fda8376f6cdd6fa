"""``app``: a page in the browser, on which photographs are tagged together with a model."""

from pathlib import Path
from typing import Annotated

import typer

from tagrank.cli.annotating import ModelOrFile
from tagrank.cli.app import DeviceOption, WeightsOption, check_inputs, chosen_device, command, find_model
from tagrank.cli.terminal import complain
from tagrank.errors import InputError
from tagrank.model_files import check_model_or_file, is_exported
from tagrank.options import ListOptions


@command("tagrank app models/photos --index indexes/holiday")
def app(
    model: ModelOrFile,
    index: Annotated[
        Path | None, typer.Option(help="What tagrank index made with this model: photographs to search.")
    ] = None,
    root: Annotated[
        Path | None,
        typer.Option(help="The folder that the names in the index begin in now, if the photographs were moved."),
    ] = None,
    host: Annotated[
        str,
        typer.Option(help="Where to listen: 127.0.0.1 is for this machine alone, 0.0.0.0 for all that reach it."),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port; 0 takes any that is free.", min=0, max=65535)] = 7860,
    max_size: Annotated[int, typer.Option(help="The largest file that is taken, in megabytes.", min=1)] = 64,
    lists: ListOptions = ListOptions(),
    weights: WeightsOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Open a page on which photographs are tagged: drop them, and accept the tags that the model proposes.

    The model goes on with what was accepted. Lists are downloaded as CSV or as XMP sidecars. With --index, photographs
    are searched by their tags. Uploaded photographs stay in memory, and each page has its own; whoever reaches the
    page may use it: there are no accounts. Ctrl-C ends it.
    """
    if root is not None and index is None:
        raise InputError("--root goes with --index")
    model = find_model(model, check_model_or_file)
    check_inputs(index, root, lists)
    from tagrank.app.server import address, import_gradio, listen, make_app, serve

    import_gradio()
    with listen(host, port) as listener:
        from tagrank.app.finding import Finder
        from tagrank.app.service import Service
        from tagrank.app.uploads import MEGABYTE, Uploads
        from tagrank.exporting import load_annotator

        annotator = load_annotator(model, device if is_exported(model) else chosen_device(device))
        finder = None if index is None else Finder(index, annotator, root)
        annotator.backbone(weights)
        service = Service(annotator, lists)
        try:
            page = make_app(service, Uploads(max_size * MEGABYTE), finder)
            if not listener.getsockname()[0].startswith(("127.", "::1")):
                complain("other machines may reach the page, and there are no accounts")
            typer.echo(f"{address(listener)} (Ctrl-C ends it)")
            serve(listener, *page)
        finally:
            service.close()
