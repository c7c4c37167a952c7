"""How fast is it, against what people would use instead?

Imports every room but `training`, `server` and `cli`.
"""
