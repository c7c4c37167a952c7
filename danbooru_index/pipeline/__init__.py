"""How is an index built?

reading, model_preload -> plan (worker_device) -> resume -> placement (sight) -> driver: dataset,
protocol, payloads, tokenize_stage, encode_stage, shard_work, worker_model, supervision, metrics,
helper, watch, progress_actor, backup_tasks -> projection, self_check -> finish -> reporting,
report (report_parts), charts -> report_page, report_files; build and rebuild (rebuild_report) are
the whole of it, guards stand before a rebuild is published, unattended is a rebuild on a schedule,
doctor looks beforehand.
Imports every room but training, benchmark, server and cli.
"""
