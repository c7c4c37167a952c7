"""Ray: which one, and what may a job take of it?

Imports `storage` and `model`.
"""
