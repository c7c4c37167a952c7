"""What is an INDEX folder?

Three Lance tables a generation, completion records, manifests, and the way from one published
generation to the next.

schema, codec -> fragments -> completion -> commit -> checks -> compaction, vector_index ->
manifest -> catalog -> lifecycle -> publish; reader, status, difference, history, estimate;
shard_stats, lance_io, lance_errors under them all. Vectors that are used again: origins ->
old_vectors -> reuse -> likeness.
Beside the tables, what a search reads: folding, transliteration, words -> names, trigrams;
inverted, spread -> search_files, dense_scan -> vector_files (in arrays), made by derive.
Imports storage.
"""
