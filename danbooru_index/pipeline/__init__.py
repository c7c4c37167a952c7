"""How is an index built?

reading, model_preload -> plan -> resume -> driver: dataset, protocol, payloads, tokenize_stage,
encode_stage, worker_model, supervision, progress_actor -> projection, self_check -> finish ->
reporting, report, report_plot; build and rebuild are the whole of it, doctor looks beforehand.
Imports every room but training, benchmark, server and cli.
"""
