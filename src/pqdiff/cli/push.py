"""`pqdiff push`: publish a folder on the Hub."""

from pathlib import Path
from typing import Annotated

import typer

from pqdiff.cli.options import Json


def push(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder of a tokenizer or a pipeline.", show_default=False)
    ],
    repo: Annotated[str, typer.Argument(metavar="REPO", help="Repository on the Hub: user/name.", show_default=False)],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the folder and list the files, but send nothing.")
    ] = False,
    private: Annotated[bool, typer.Option("--private", help="Make the repository private.")] = False,
    json: Json = False,
) -> None:
    """Check a tokenizer or a pipeline and publish it on the Hub: weights, card, variant file and samples."""
    from pqdiff.cli.library_messages import silence_libraries

    silence_libraries(quiet=json)
    from pqdiff.cli.output import print_json, print_lines, print_table
    from pqdiff.hub.push import push_folder

    result = push_folder(folder, repo, private=private, dry_run=dry_run)
    total = sum(size for _, size in result.files)
    if json:
        files = [{"path": path, "bytes": size} for path, size in result.files]
        facts = {"url": result.url, "dry_run": dry_run, "files": files, "bytes": total}
        print_json({**facts, "left_out": result.left_out, "removed": result.removed})
        return
    print_table(str(folder), ["file", "bytes"], [[path, f"{size:,}"] for path, size in result.files])
    for title, names in (("Left out", result.left_out), ("Removed from the Hub", result.removed)):
        if names:
            print_lines(f"{title}: {', '.join(names)}")
    amount = f"{len(result.files)} files, {total:,} bytes"
    print_lines(
        f"Nothing was sent; {amount} would go to {result.url}" if dry_run else f"Pushed {amount}: {result.url}"
    )
