"""Which tags answer?

A query -> candidates and exact scores over one generation.

query -> query_encoder -> filters -> retriever (the protocol) -> dense, sparse, colbert, lexical ->
prompt -> resolve, description -> ranking; hybrid -> batch; hit -> explain, by_part -> by_model;
open_generation -> answering -> tag_index.
Imports storage, model and index.
"""
