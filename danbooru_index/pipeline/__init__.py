"""How is an index built?

reading, model_preload -> plan -> resume -> driver: dataset, protocol, payloads, tokenize_stage,
encode_stage, shard_work, worker_model, supervision, metrics, helper, watch, progress_actor,
backup_tasks -> projection, self_check -> finish -> reporting, report, report_plot; build and
rebuild are the whole of it, doctor looks beforehand.
Imports every room but training, benchmark, server and cli.
"""
