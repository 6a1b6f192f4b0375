"""``python -m forecast``: train one model, or forecast with a checkpoint."""

import sys

from forecast.cli import main
from forecast.command import run

sys.exit(run(main))
