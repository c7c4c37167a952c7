"""What is an INDEX folder?

Three Lance tables a generation, completion records, manifests, and the way from one published
generation to the next. Imports `storage` and `model`.
"""
