"""How good is an index?

queries -> baselines -> evaluate -> metrics -> report.
Imports storage, ingest, model, index and search.
"""
