"""Data sets written: one file is one format, its name is what `fleetnet data convert --to` takes.

A writer gets splits that hold no more than it can (`_losses` sees to that) and a folder that
nobody looks at before it is whole (`_conversion`). What it wrote is read back and compared with
what it was to write (`_proof`) before the folder gets its name.
"""

from ._conversion import Converted, convert, write
from ._table import Writer, find

__all__ = ["Converted", "Writer", "convert", "find", "write"]
