"""Write one HTML page in which a trained model can be explored: python explore.py (see python explore.py --help)."""

import argparse
import sys
import webbrowser

from vae import files, report, terminal
from vae.explorer.page import build_page
from vae.run import Run
from vae.settings import add_checkpoint_flag, add_data_flags


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = terminal.Parser(description="Write one HTML page to explore a model in: a map, sliders, a pad to draw on.")
    add = parser.add_argument
    add_checkpoint_flag(parser, "explore")
    images = add_data_flags(parser, "the test images on the map")
    drawn = "show images that the model draws instead (default: only where there are no others)"
    images.add_argument("--drawn", action="store_true", help=drawn)
    add("--output", default="explorer.html", metavar="HTML", help="the page (default: explorer.html)")
    add("--no-open", dest="open", action="store_false", help="do not open it in the browser (default: it is opened)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Command line -> run -> images -> page -> browser."""
    options = parse(arguments)
    output = files.check_place("--output", options.output)
    run = Run.find(options.checkpoint)
    try:  # --transpose without --data is refused, with --drawn, too
        dataset = None if options.drawn and not options.transpose else report.load_shown_images(run, options)
    except terminal.UserError as error:
        if options.data or options.dataset or options.transpose:
            raise
        dataset = None
        print(f"-> {error}\n-> The map shows images that the model draws instead", file=sys.stderr)
    terminal.import_keras()
    print(f"-> Checkpoints are restored from {terminal.shown(run.folder)}", flush=True)
    page = build_page(run, dataset)
    with files.replacing(output) as path:
        path.write_text(page, encoding="utf-8")
    print(f"-> The page is saved in {output} ({output.stat().st_size / 1e6:.1f} MB, opens without a server)")
    if options.open:
        webbrowser.open(output.resolve().as_uri())


if __name__ == "__main__":
    terminal.run(main)
