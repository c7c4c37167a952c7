"""How good is an index?

Imports `storage`, `ingest`, `model`, `index` and `search`.
"""
