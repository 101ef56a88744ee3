"""A recipe of somebody else's: a bigram model of letters, trained with nothing but numpy."""
