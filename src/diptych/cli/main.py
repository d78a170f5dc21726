"""`diptych`: the table of verbs, loaded one at a time, and what every error looks like."""

import importlib
import os
import sys

import click

from diptych.errors import DiptychError, nearest
from diptych.processors import obey_quota

# verb: (where it lives, its line in the list of verbs)
VERBS = {
    "anomaly": ("diptych.cli.anomaly:anomaly", "Find what is damaged, and where on the picture."),
    "classify": ("diptych.cli.classify:classify", "Say which labels fit each image."),
    "curate": ("diptych.cli.curate:curate", "Build data sets: pack pairs into shards."),
    "demo": ("diptych.cli.demo:demo", "See what the model makes of photos, on one page."),
    "dedup": ("diptych.cli.dedup:dedup", "List pictures that are there twice, or almost."),
    "doctor": (
        "diptych.cli.doctor:doctor",
        "Show what is installed, or what is wrong with data.",
    ),
    "embed": ("diptych.cli.embed:embed", "Write the vectors of images, texts or whole data sets."),
    "eval": ("diptych.cli.eval:eval_", "Measure models on data sets, and compare two."),
    "index": ("diptych.cli.index:index", "Index folders of pictures, or bring them up to date."),
    "models": ("diptych.cli.models:models", "List, show, check and convert models."),
    "moderate": ("diptych.cli.moderate:moderate", "Judge pictures by a policy of sentences."),
    "resident": ("diptych.cli.resident:resident", "Keep models warm, so that a search is quick."),
    "score": ("diptych.cli.score:score", "Say how well captions fit, or how pictures look."),
    "search": ("diptych.cli.search:search", "Find the images that fit words, or another image."),
    "tag": ("diptych.cli.tag:tag", "Say which labels of a vocabulary hold for each picture."),
    "train": ("diptych.cli.train:train", "Train or fine-tune a model on pictures with captions."),
}


class _Verbs(click.Group):
    """Imports a verb's module when the verb is used; the list of verbs imports none."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(VERBS)

    def resolve_command(self, ctx: click.Context, args: list[str]):
        if args[0] not in VERBS:
            raise click.UsageError(
                f"no verb {printable(args[0])!r}. {nearest(args[0], VERBS)} Type: diptych --help"
            )
        return super().resolve_command(ctx, args)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        module, _, attribute = VERBS[cmd_name][0].partition(":")
        return getattr(importlib.import_module(module), attribute)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl([(verb, VERBS[verb][1]) for verb in sorted(VERBS)])

    def invoke(self, ctx: click.Context):
        try:
            return super().invoke(ctx)
        except DiptychError as error:
            click.echo(f"Error: {printable(str(error))}", err=True)
            ctx.exit(2)


def printable(text: str) -> str:
    """Text that any terminal takes: bytes of a file name that are not UTF-8 become \\udc..."""
    return text.encode("utf-8", "backslashreplace").decode()


def on_a_line(text: str) -> str:
    """`printable`, on one line and without what a terminal would obey: names may hold anything."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in printable(text)
    )


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="diptych")
def cli() -> None:
    """Images and words in one space: CLIP as a whole system.

    Exit codes: 0 all done, 1 some inputs failed, 2 wrong use or nothing done.
    """


def main() -> None:
    """Entry point of the `diptych` command."""
    # Read by OpenMP when torch is imported. Threads that spin while they wait take the cores from
    # those that decode images, and from other programs: 11 s instead of 1 beside a busy one.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    obey_quota()
    try:
        cli(prog_name="diptych")
    except BrokenPipeError:  # the reader of our output has gone, as `| head` does
        sys.stderr.close()
        sys.exit(1)


if __name__ == "__main__":
    main()
