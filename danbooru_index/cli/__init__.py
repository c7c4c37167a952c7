"""Who asked for what?

Parses a command, calls the room that answers it, prints, and ends with the exit code. Imports every
room.
"""
