"""How a language model is measured: by the tokens' likelihood, against n-grams, on choices and on recall."""
