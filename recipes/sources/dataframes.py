"""Daft with its telemetry switched off; import `daft` from here.

    from nemotron.recipes.sources.dataframes import daft

Daft reads these variables when it is imported, so they are set before the import. A value that the user has set is
kept.
"""

import logging
import os

os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("DAFT_ANALYTICS_ENABLED", "0")

import daft

# These loggers repeat, over many lines, the errors that Daft raises and the caller turns into one sentence.
for name in ("daft_local_execution", "aws_config"):
    logging.getLogger(name).setLevel(logging.CRITICAL)

__all__ = ["daft"]
