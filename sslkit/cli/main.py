"""The command line: parse, one library call, print. Exit status: 0 for success, 2 for a user's mistake, 1 for a bug.

Nothing heavy is imported before a command needs it: `sslkit --help` and `sslkit list` do not import torch.
"""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sslkit import plugins
from sslkit.errors import UserError
from sslkit.machine import signals, streams
from sslkit.machine.allocator import freed_memory

if TYPE_CHECKING:
    from sslkit.config.resolve import Resolved
    from sslkit.runs.run import Run

WORDS = click.argument("words", nargs=-1, metavar="[key=value]...")
KEPT = ("run", "resume")
"""Commands whose results are files, whatever becomes of standard output."""


class Group(click.Group):
    """Command group that prints a UserError as a message and exits with status 2; plugins add commands to it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            result = super().invoke(ctx)
            if (lost := streams.lost_output()) and ctx.invoked_subcommand not in KEPT:
                raise UserError(f"results on standard output are lost ({lost}); send them elsewhere")
            return result
        except UserError as error:
            from sslkit.machine.console import printable

            if ctx.params.get("debug"):
                raise
            click.echo(f"Error: {printable(str(error))}", err=True)
            ctx.exit(2)
        except KeyboardInterrupt as stopped:
            ctx.exit(getattr(stopped, "status", 130))
        except Exception:
            # A signal in the middle of an import leaves half a module, which fails when it is used.
            if signum := signals.asked():
                ctx.exit(128 + signum)
            raise


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="sslkit")
@click.option("--debug", is_flag=True, help="Show tracebacks of user errors too.")
def cli(debug: bool) -> None:
    """Pre-train light vision backbones on your own unlabelled images.

    \b
    sslkit run                                            the demo: BYOL, ShuffleNetV2, handwritten digits
    sslkit run method=simclr backbone=resnet18 data=photos/
    sslkit list methods                                   the available methods
    sslkit show methods byol                              the settings of one method
    """


@cli.command()
@WORDS
@click.option(
    "--dry-run", is_flag=True, help="Check everything and print every setting with its origin; train nothing."
)
@click.option(
    "--plan", "only_plan", is_flag=True, help="Time a few steps and estimate what the run would take; train nothing."
)
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON.")
def run(words: tuple[str, ...], dry_run: bool, only_plan: bool, as_json: bool) -> None:
    """Pre-train a backbone: sslkit run [recipe.yaml] [key=value]...

    Keys without a dot are settings of the run (method backbone data augment evaluators epochs batch_size ...);
    dotted keys are settings of the component that they name (method.temperature=0.2 optimizer.lr=0.1).
    `sslkit show run` explains every key. recipe=NAME starts from a recipe of `sslkit list recipes`.
    """
    from sslkit.training.preflight import look_at_data, resolve_new

    recipe = words[0] if words and "=" not in words[0] else None
    resolved = resolve_new(words[1:] if recipe else words, recipe)
    if dry_run:
        from sslkit.cli.tables import print_origins

        print_origins(resolved)
        for line in look_at_data(resolved.config):
            click.echo(line, err=True)
        return
    if only_plan:
        _print_plan(resolved, as_json)
        return
    from sslkit.training import engine

    with freed_memory(keep=True):
        _conclude(engine.run(resolved))


@cli.command()
@click.argument("path", metavar="RUN", type=click.Path(path_type=Path))
@WORDS
@click.option("--devices", type=click.IntRange(min=1), help="Number of processes, if it is to differ from before.")
def resume(path: Path, words: tuple[str, ...], devices: int | None) -> None:
    """Resume a stopped run, with results that are bit-identical to those of an uninterrupted run.

    If the images have moved: sslkit resume RUN data=PATH (and eval_data=PATH); they must be the same.
    """
    from sslkit.training import engine

    with freed_memory(keep=True):
        _conclude(engine.resume(path, devices=devices, words=words))


@cli.command()
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--format",
    "style",
    type=click.Choice(["table", "csv", "json", "markdown", "latex"]),
    default="table",
    show_default=True,
)
@click.option("--sort", metavar="KEY", help="Column to sort by, such as knn/top1 or hours; best first.")
def compare(runs: tuple[Path, ...], style: str, sort: str | None) -> None:
    """Compare results and costs of runs: sslkit compare runs/* --sort knn/top1"""
    from sslkit.runs.compare import show, table

    show(table(runs, sort), style)


@cli.command()
@click.argument("target", metavar="RUN|FILE|NAME")
@WORDS
@click.option(
    "--all-checkpoints", is_flag=True, help="Evaluate every kept checkpoint of a run, and plot accuracy over epochs."
)
@click.option("--json", "as_json", is_flag=True, help="Print the records as JSON.")
def evaluate(target: str, words: tuple[str, ...], all_checkpoints: bool, as_json: bool) -> None:
    """Evaluate a run, a weights file or a plain backbone: sslkit evaluate RUN evaluators=[knn,linear]

    \b
    sslkit evaluate runs/byol eval_data=photos/           on images other than the run's
    sslkit evaluate timm:resnet18 data=photos/            random weights, unless backbone.pretrained=FILE
    """
    from sslkit.runs.display import Display

    display = Display(quiet=as_json)
    if all_checkpoints:
        from sslkit.cli.tables import print_epoch_curves as show
        from sslkit.evaluation.checkpoints import evaluate_checkpoints

        records = evaluate_checkpoints(target, words, display)
    else:
        from sslkit.cli.tables import print_records as show
        from sslkit.evaluation.targets import evaluate_saved

        with freed_memory(keep=True):
            records = evaluate_saved(target, words, display)
    if as_json:
        click.echo(json.dumps(records, indent=2))
    else:
        show(records)


@cli.command()
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="File to write instead of report.html.")
def report(runs: tuple[Path, ...], out: Path | None) -> None:
    """Write one self-contained HTML page that shows a run or compares several.

    The report of one run is RUN/report.html, as at the end of training; that of several runs is report.html in the
    working directory.
    """
    from sslkit.runs.report import write

    click.echo(f"report: {write(runs, out)}")


@cli.command("list")
@click.argument("kind", required=False, type=click.Choice([*plugins.KINDS, "recipes"]))
@click.option("--json", "as_json", is_flag=True, help="Print a list of {name, summary, distribution}.")
def list_(kind: str | None, as_json: bool) -> None:
    """List methods, backbones, augmentations, evaluators and data sets, with their packages; or recipes."""
    from sslkit.cli.tables import print_components

    print_components([kind] if kind else list(plugins.KINDS), as_json)


@cli.command()
@click.argument("kind", type=click.Choice([*(k for k in plugins.KINDS if k != "trackers"), "recipes", "run"]))
@click.argument("name", required=False)
def show(kind: str, name: str | None) -> None:
    """Explain a component and its settings: sslkit show methods byol; `sslkit show run` for the run's own settings.

    `sslkit show recipes NAME` prints a recipe.
    """
    from sslkit.cli.tables import print_recipe, print_settings_of

    if kind == "recipes":
        print_recipe(name)
    else:
        print_settings_of(kind, name)


@cli.command()
@click.argument("source")
@click.argument("out", type=click.Path(path_type=Path))
@WORDS
@click.option("--role", type=click.Choice(["pretrain", "train", "test"]), default="pretrain", show_default=True)
def pack(source: str, out: Path, words: tuple[str, ...], role: Any) -> None:
    """Pack images into one .beton file: sslkit pack photos/ photos.beton image_size=96 jpeg_quality=90

    `sslkit show datasets folder` explains the keys.
    """
    from sslkit.config.resolve import resolve_data
    from sslkit.data import pack_source
    from sslkit.runs.display import Display

    store = pack_source(resolve_data(source, words), out, role, Display().log)
    size = out.stat().st_size / 2**20
    click.echo(f"{out}: {len(store)} images of {store.size} px, {size:.1f} MiB, {len(store.skipped)} skipped")


@cli.command()
@click.argument("runs", metavar="[RUN]...", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--keep", type=click.IntRange(min=1), default=1, show_default=True, help="Newest checkpoints of each run."
)
@click.option("--cache", is_flag=True, help="Also remove files of the cache that nothing has used lately.")
@click.option("--days", type=click.FloatRange(min=0), default=30, show_default=True, help="Days that lately means.")
@click.option(
    "--max-gb", type=click.FloatRange(min=0), help="Gigabytes that the cache may keep; the longest unused go."
)
@click.option("--dry-run", is_flag=True, help="List what would be removed, and remove nothing.")
def clean(runs: tuple[Path, ...], keep: int, cache: bool, days: float, max_gb: float | None, dry_run: bool) -> None:
    """Remove old checkpoints of runs, unused files of the cache, and what killed processes left.

    \b
    sslkit clean runs/* --dry-run                 what would be removed of runs
    sslkit clean --cache --max-gb 20              all but the 20 GB that were used last
    """
    from sslkit.cli.cleaning import clean_up

    clean_up(runs, keep, cache, days, max_gb, dry_run)


@cli.command()
def doctor() -> None:
    """Report Python, torch, device, memory, FFCV, plugins, caches and the runs in runs/."""
    from sslkit.cli.doctor import print_report

    print_report()


def main() -> None:
    """Entry point: add the commands of plugins, warn about broken plugins in one line each, and run the command."""
    streams.make_lenient()
    signals.handle(signals.raise_interrupted)
    try:
        plugins.add_commands(cli)
        for problem in plugins.problems():
            click.echo(f"warning: {problem}", err=True)
        cli()
    except KeyboardInterrupt as stopped:
        sys.exit(getattr(stopped, "status", 130))


def _print_plan(resolved: "Resolved", as_json: bool) -> None:
    from dataclasses import asdict

    from sslkit.runs.display import Display, terminal
    from sslkit.training.plan import as_table, plan

    with freed_memory(keep=True):
        found = plan(resolved, Display(quiet=as_json).log)
    if as_json:
        click.echo(json.dumps(asdict(found), indent=2, ensure_ascii=False))
    else:
        terminal().print(as_table(found))


def _conclude(run: "Run") -> None:
    from sslkit.cli.tables import print_outcome
    from sslkit.training import launch

    if launch.speaks():
        print_outcome(run)
