"""The tables that stand between marker comments in a text, and the command line of the scripts beside this file that make them.

    <!-- icn_table.py: begin answers-20 sweep -->
    <!-- icn_table.py: end -->

The markers name the script and those of its tables that stand between them, with an empty line between two; without a name,
all. Standard library only.
"""

import argparse
import difflib
import pathlib
import re
import sys


def parser(script, doc):
    """The arguments that every such script has; `run` takes what they were parsed to."""
    script = pathlib.Path(script).name
    found = argparse.ArgumentParser(prog=script, description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.set_defaults(script=script)
    files = {"type": pathlib.Path, "action": "append", "default": [], "metavar": "FILE"}
    found.add_argument("--write", help="replace what stands between the markers; may be given again", **files)
    found.add_argument("--check", help="compare it, exit code 1 if it differs; may be given again", **files)
    return found


def made(tables, names, of="command line"):
    """Names and texts of the named tables, or of all; `tables` holds the function of each, which returns whole lines."""
    if unknown := [name for name in names if name not in tables]:
        sys.exit(f"{of}: no table {', '.join(unknown)}; there are {', '.join(tables)}")
    return [(name, tables[name]()) for name in names or tables]


def updated(script, path, text, tables):
    """`text`, which was read from `path`, with its tables made again."""
    begin = re.compile(rf"<!-- {re.escape(script)}: begin([ \w-]*) -->\n")
    end = f"<!-- {script}: end -->"
    parts = begin.split(text)
    if len(parts) == 1:
        sys.exit(f"{path}: no lines `<!-- {script}: begin NAMES -->` and `{end}`")
    new, markers = parts[0], [found[0] for found in begin.finditer(text)]
    for marker, names, rest in zip(markers, parts[1::2], parts[2::2]):
        _, closed, after = rest.partition(end)
        if not closed:
            sys.exit(f"{path}: `{marker.strip()}` without `{end}` behind it")
        new += marker + "\n".join(text for _, text in made(tables, names.split(), path)) + end + after
    return new


def run(args, tables, whole=None, names=()):
    """Writes and checks the files that `args` name; without one, prints the named tables.

    `whole` holds, by ending, what makes the whole of a file instead of tables in it.
    """
    script = args.script

    def old_and_new(path):
        make = (whole or {}).get(path.suffix)
        if not path.exists() and make is None:
            sys.exit(f"{path}: no such file")
        old = path.read_text() if path.exists() else ""
        return old, make() if make else updated(script, path, old, tables)

    for path in args.write:
        path.write_text(old_and_new(path)[1])
    stale = []
    for path in args.check:
        old, new = old_and_new(path)
        if old != new:
            stale.append(f"{path}: differs from the runs; `python3 scripts/{script} --write {path}` mends it")
            sys.stdout.writelines(difflib.unified_diff(old.splitlines(True), new.splitlines(True), str(path), "runs"))
            sys.stdout.flush()
    if stale:
        sys.exit("\n".join(stale))
    if not args.write and not args.check:
        print("\n".join(f"{name}:\n\n{text}" for name, text in made(tables, names)), end="")
