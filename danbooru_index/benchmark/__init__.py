"""How fast is it, against what people would use instead?

run -> baselines -> encoder, packing, colbert -> job -> simulated, orchestration.
Imports every room but training, server and cli.
"""
