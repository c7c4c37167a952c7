"""Which records are there?

Tag dumps become records, records become shards that are known by their content.

sources, fields -> prepare -> output_folder; parquet -> shards -> duplicates -> scan -> sampling.
Imports storage.
"""
