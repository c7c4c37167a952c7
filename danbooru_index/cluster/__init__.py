"""Ray: which one, and what may a job take of it?

security -> upload -> private_ray -> session -> resources.
Imports storage and model.
"""
