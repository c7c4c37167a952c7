"""What survives a crash?

Files that are there whole or not at all, on a disk and on S3; one owner at a time. Imports no other
room.
"""
