#!/usr/bin/env python3
"""Writes `tests/fixtures/lines.parquet`: lines of text as the hub's data sets have them, by pyarrow.

    make_parquet_fixture.py [--file tests/fixtures/lines.parquet]

Empty rows, rows that are equal (a dictionary page), a row that is null, two row groups, Snappy, and a column that is no text.
"""

import argparse

import pyarrow
import pyarrow.parquet

ROWS = ["", " = A title = \n", "", " A line of words , and ü . \n", " A line of words , and ü . \n", None, " The end . \n"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", default="tests/fixtures/lines.parquet")
    a = parser.parse_args()
    table = pyarrow.table({"number": list(range(len(ROWS))), "text": ROWS})
    pyarrow.parquet.write_table(table, a.file, row_group_size=4, compression="snappy")


if __name__ == "__main__":
    main()
