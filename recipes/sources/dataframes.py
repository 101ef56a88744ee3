"""Daft with its telemetry switched off: whoever needs dataframes imports `daft` from here and from nowhere else.

    from nemotron.recipes.sources.dataframes import daft

Daft reads these variables while it is imported, so they have to stand before the import. A value that the user has set
stays as it is.
"""

import os

os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("DAFT_ANALYTICS_ENABLED", "0")

import daft

__all__ = ["daft"]
