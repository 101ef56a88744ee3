"""Write the report of a run again. Run: python -m nemotron.report outputs/nano2/tiny"""

import argparse
from pathlib import Path

from nemotron.command_line import checked_arguments, program_name
from nemotron.pipe import print_page, step_process
from nemotron.report import write_report
from nemotron.terminal import whole_output


def main() -> None:
    """Write the report of the directory on the command line, and print its path."""
    parser = argparse.ArgumentParser(
        prog=program_name(),
        description="Write report.html and report.md of a run, from its artifacts alone.",
        allow_abbrev=False,
    )
    parser.add_argument("output_dir", type=Path, help="output directory of a recipe, or of one of its stages")
    with whole_output():
        arguments = parser.parse_args(checked_arguments())
    with step_process():
        print_page(str(write_report(arguments.output_dir)))


if __name__ == "__main__":
    main()
