"""Parts of a runtime that has no use for them; `Runtime` says what they are.

Modules cannot inherit, so a runtime names each part that it leaves to the default:
`from ._defaults import cannot_run as cannot_run`.
"""


def cannot_run() -> str | None:
    """Every machine runs the file."""
    return None


def import_packages() -> None:
    """Nothing beforehand: what `load` imports counts as the time and memory of opening a file."""


# What computes the layers of a file is not told.
kernels = None
