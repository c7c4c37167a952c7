"""Ray: which one, and what may a job take of it?

security -> upload -> private_ray -> session -> autoscaling, node_watch, ray_errors -> resources,
other_nodes.
Imports storage and model.
"""
