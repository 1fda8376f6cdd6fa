"""``evaluate`` and ``report``: compare a model with people's lists."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tagrank.cli.app import (
    DeviceOption,
    ManifestFile,
    Model,
    SeedOption,
    SkipUnreadable,
    WeightsOption,
    check_inputs,
    check_target,
    chosen_device,
    command,
    find_model,
)
from tagrank.cli.terminal import SHOWN, Complaints, complain
from tagrank.errors import InputError
from tagrank.model_hub import is_on_hub
from tagrank.options import BaselineOptions, JudgedOptions, ListOptions, RivalOptions

if TYPE_CHECKING:
    from tagrank.evaluation.judged import JudgedModel


@command("tagrank evaluate models/photos test.jsonl --baselines --train photos.jsonl --json scores.json")
def evaluate(
    model: Model,
    manifest: ManifestFile,
    data: JudgedOptions,
    lists: ListOptions,
    baselines: BaselineOptions,
    rival: RivalOptions,
    retrieval: Annotated[bool, typer.Option("--retrieval", help="Judge search too: see docs/search.md.")] = False,
    completion: Annotated[
        bool, typer.Option("--completion", help="Judge the next tag of lists that people began too: see docs/lists.md.")
    ] = False,
    weights: WeightsOption = None,
    device: DeviceOption = "auto",
    skip_unreadable: SkipUnreadable = True,
    seed: SeedOption = 0,
    all_measures: Annotated[bool, typer.Option("--all", help="Show all measures on a narrow terminal too.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the tables to this JSON file.")] = None,
) -> None:
    """Compare the model's lists with people's, and the model with baselines or another model."""
    if rival.against is None and rival.against_features is not None:
        raise InputError("--against-features goes with --against")
    if json_file is not None:
        check_target("--json", json_file)
    model = find_model(model)
    against = rival.against
    if against is not None and is_on_hub(str(against)):
        rival = replace(rival, against=find_model(against))
    check_inputs(manifest, data, lists, baselines, rival)
    _check_weights(weights, data, baselines)
    from tagrank.evaluation.judgement import judge
    from tagrank.evaluation.tables import (
        print_comparison,
        print_completion,
        print_retrieval,
        print_rows,
        retrieval_rows,
        write_rows,
    )
    from tagrank.metrics import compare

    device = chosen_device(device)
    failed = Complaints(SHOWN)
    on_error = failed if skip_unreadable else None
    judged = _open(model, manifest, data, weights, device, on_error)
    train_images = judged.train_images(baselines)
    other = None
    if rival.against is not None:
        features = rival.against_features or data.features
        other = _open(rival.against, manifest, replace(data, features=features), weights, device, on_error)
        judged.keep_common(other)
    failed.close()
    _warn(judged)
    options = judged.annotator.rank_options(lists)
    ours = judge(judged.annotator, judged.images, **options)
    rows, comparison, found, begun = [ours.row()], None, None, None
    if other is not None:
        _warn(other)
        theirs = judge(other.annotator, other.images, name=str(against), **other.annotator.rank_options(lists))
        rows.append(theirs.row())
        comparison = compare(ours.per_image, theirs.per_image, seed=seed)
    if retrieval:
        from tagrank.retrieval.ndcg import evaluate_retrieval

        found = retrieval_rows(evaluate_retrieval(judged.annotator, judged.images, seed))
    rows += judged.baseline_rows(train_images, options["output"], seed)
    if completion:
        if options["output"] is not None or against is not None:
            complain("--completion: judges all tags of the first model; other options say nothing of its table")
        from tagrank.evaluation.next_tag_judgement import completion_rows

        begun = completion_rows(judged.annotator, judged.images, train_images, seed)
    print_rows(rows, title=f"Judged by {judged.described}", all_measures=all_measures)
    if comparison is not None:
        print_comparison(comparison, str(against))
    if found is not None:
        print_retrieval(found)
    if begun is not None:
        print_completion(begun, all_measures=all_measures)
    if json_file is not None:
        write_rows(
            json_file,
            rows,
            comparison=comparison,
            retrieval=found,
            completion=begun,
            seen=judged.seen(),
            calibration=ours.calibration,
            model=judged.model(),
        )
    failed.exit()


@command("tagrank report models/photos test.jsonl --out report.html")
def report(
    model: Model,
    manifest: ManifestFile,
    out: Annotated[Path, typer.Option(help="The HTML file.", show_default=False)],
    data: JudgedOptions,
    lists: ListOptions,
    baselines: BaselineOptions,
    weights: WeightsOption = None,
    device: DeviceOption = "auto",
    skip_unreadable: SkipUnreadable = True,
    examples: Annotated[int, typer.Option(help="How many photographs to show.", min=0)] = 48,
    worst: Annotated[int, typer.Option(help="How many of the photographs with the worst lists to show.", min=0)] = 12,
    seed: SeedOption = 0,
) -> None:
    """Write one HTML file: the table, learning curves, mistakes, and photographs with ranked tags beside people's.

    A photograph that cannot be read is reported on stderr and shown without its picture; the exit code is 1.
    """
    check_target("--out", out, make_folder=True)
    model = find_model(model)
    check_inputs(manifest, data, lists, baselines)
    _check_weights(weights, data, baselines)
    from tagrank.evaluation.judgement import judge
    from tagrank.evaluation.report import write_model_report
    from tagrank.training.run_folder import read_history

    left_out = Complaints(SHOWN)
    judged = _open(model, manifest, data, weights, chosen_device(device), left_out if skip_unreadable else None)
    train_images = judged.train_images(baselines)
    left_out.close()
    _warn(judged)
    root = data.images or manifest.parent
    if not any((root / example.image).is_file() for example in judged.images.examples):
        complain(f"no photograph is in {root}, so none is shown (--images)")
    options = judged.annotator.rank_options(lists)
    ours = judge(judged.annotator, judged.images, **options)
    failed: dict[Path, InputError] = {}
    write_model_report(
        out,
        judged.annotator,
        judged.images,
        ours,
        judged.baseline_rows(train_images, options["output"], seed),
        read_history(model),
        root=root,
        examples=examples,
        worst=worst,
        judged_by=judged.described,
        seen=judged.seen(),
        on_error=failed.__setitem__,
        **options,
    )
    typer.echo(out)
    for error in failed.values():
        complain(error)
    left_out.exit()
    if failed:
        raise typer.Exit(1)


def _check_weights(weights: str | None, data: JudgedOptions, baselines: BaselineOptions) -> None:
    if weights is not None and data.features is not None and (baselines.train is None or baselines.train_features):
        raise InputError("--weights goes with photographs, not with --features")


def _open(
    model: Path,
    manifest: Path,
    data: JudgedOptions,
    weights: str | None,
    device: str,
    on_error: Complaints | None,
) -> "JudgedModel":
    from tagrank.evaluation.judged import JudgedModel

    return JudgedModel(model, manifest, data, weights, device, on_error)


def _warn(judged: "JudgedModel") -> None:
    """Say on stderr how many of the images the model has seen, if it has seen any."""
    if seen := judged.seen():
        what = f"{seen} of the {len(judged.images)} images that it is judged by"
        complain(f"{judged.folder}: was trained or validated on {what}")
