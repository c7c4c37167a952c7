"""Who asked for what?

Parses a command, calls the room that answers it, prints, and ends with the exit code.

entry -> options -> building, rebuilding, searching, keeping, measuring, training.
Imports every room.
"""
