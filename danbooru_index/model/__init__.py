"""What does a text become?

Text -> dense vector, sparse weights, ColBERT matrix, on a CPU or one GPU. Imports `storage`.
"""
