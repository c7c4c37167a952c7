"""Which tags answer?

A query -> candidates and exact scores over one generation. Imports `storage`, `model` and `index`.
"""
