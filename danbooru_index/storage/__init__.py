"""What survives a crash?

Files that are there whole or not at all, on a disk and on S3; one owner at a time.

base (the Storage protocol) -> local, s3 (over s3_client, s3_reader) -> lease -> locate -> space;
read_ahead: many reads at once.
Imports no other room.
"""
