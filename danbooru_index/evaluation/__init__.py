"""How good is an index?

queries -> baselines -> evaluate -> metrics, latency -> report; canaries compare two generations.
Imports storage, ingest, model, index and search.
"""
