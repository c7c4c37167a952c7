"""Which records are there?

Tag dumps become records, records become shards that are known by their content. Imports `storage`.
"""
