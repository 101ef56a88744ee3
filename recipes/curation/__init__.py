"""From raw documents and conversations to packed token sequences; the steps of every data_curation.py.

Documents are rows of a Daft dataframe with a column for each field of `Document`; the same code runs on one machine
and, with DAFT_RUNNER=ray, on a cluster. The rows have no guaranteed order, so code that depends on an order sorts by id
first. Between two steps they are in Parquet files, and no step holds all texts or tokens. Conversations are in Parquet
files too, but keep their order; a task reads one of the files.
"""
