"""The recorded numbers, one JSON file per stage: `nano2/stage0_pretrain.json`.

Installed as `nemotron.golden`, so that an installed wheel can compare its own run with what was recorded. The files are
read and compared by `nemotron.testing.compare`. `pytest -k stage0 --snapshot-update` writes one that is missing;
`nox -s bless` replaces one, and writes the reason into CHANGES.md.
"""
