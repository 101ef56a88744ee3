"""The recorded numbers, one JSON file per stage: `nano2/stage0_pretrain.json`.

Installed as `nemotron.golden`, so that an installed wheel can compare its own run with what was recorded. The files are
read and compared by `nemotron.testing.compare`, and written by `pytest -k stage0 --snapshot-update`.
"""
