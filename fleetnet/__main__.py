"""`python -m fleetnet` is the command `fleetnet`."""

import sys

from .cli import main

sys.exit(main())
