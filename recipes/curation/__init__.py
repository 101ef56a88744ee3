"""From raw documents to packed token sequences: one module a concern, called by every data_curation.py.

Documents travel as a Daft dataframe with the columns id, module, category, text, licence, origin, has_example and
exported; the same lines run on one machine and, with DAFT_RUNNER=ray, on a cluster. Rows have no order that may be
relied on, so whatever depends on an order sorts by id first.
"""
