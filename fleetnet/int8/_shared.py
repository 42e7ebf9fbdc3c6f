"""What the quantizers share: they are kept quiet, and name layers by our modules."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what the quantizers print, log and draw on the terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def module_of(node: str) -> str:
    """The module of a node, which our ONNX files name "backbone.stages.0.conv/Conv"."""
    return node.partition("/")[0]
