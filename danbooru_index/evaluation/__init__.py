"""How good is an index?

queries -> baselines -> evaluate -> metrics, latency -> report.
Imports storage, ingest, model, index and search.
"""
