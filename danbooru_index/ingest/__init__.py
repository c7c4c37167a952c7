"""Which records are there?

Tag dumps become records, records become shards that are known by their content.

What is in a file: sources -> readers (text_file, text_encoding, delimited, table_rows, json_text,
json_rows, databases, parquet) -> rows.
What it means: columns, sites, guess, asked_mapping -> understanding
-> dumps (mapping, compose, fields). What else is known of a tag: names, translations, tag_notes,
nsfw.
All of it: settled (is the dump whole?), prepare_input -> prepare -> prepare_report, plausible,
output_folder.
The shards again: shard_files -> shards -> duplicates -> scan -> sampling.
Imports storage.
"""
