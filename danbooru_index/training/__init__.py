"""How is a model made better at tags?

Imports every room but `benchmark`, `server` and `cli`.
"""
