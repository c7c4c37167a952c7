"""Which tags answer?

A query -> candidates and exact scores over one generation.

query -> query_encoder -> filters -> retriever (the protocol) -> dense, sparse, colbert, lexical ->
ranking -> hybrid -> batch -> hit -> tag_index.
Imports storage, model and index.
"""
