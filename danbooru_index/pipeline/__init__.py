"""How is an index built?

The build in order, its workers, its report, and the commands around it. Imports every room but
`training`, `benchmark`, `server` and `cli`.
"""
