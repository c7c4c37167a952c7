"""Which tags answer?

A query -> candidates and exact scores over one generation.

query -> query_encoder -> filters -> retriever (the protocol) -> dense, sparse, colbert, lexical ->
ranking, prompt -> resolve; hybrid -> batch -> hit -> open_generation -> tag_index.
Imports storage, model and index.
"""
