"""Daft with its telemetry switched off: whoever needs dataframes imports `daft` from here.

    from nemotron.recipes.sources.dataframes import daft

Daft reads these variables while it is imported, so they have to stand before the import. A value that the user has set
stays as it is.
"""

import logging
import os

os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("DAFT_ANALYTICS_ENABLED", "0")

import daft

# These log what Daft also raises, over many lines; the caller turns what is raised into one sentence.
for name in ("daft_local_execution", "aws_config"):
    logging.getLogger(name).setLevel(logging.CRITICAL)

__all__ = ["daft"]
