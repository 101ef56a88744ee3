"""One line per stage; the plugin comes with `pip install 'nemotron-recipes[test]'`."""

from nemotron.testing.plugin import stage_fixture

stage0 = stage_fixture("letters.stage0_bigram")
