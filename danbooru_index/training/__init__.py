"""How is a model made better at tags?

finetune_config -> pairs -> negatives -> data -> worker_group -> trainer -> model_card; finetune is
the whole of it. mini_tokenizer -> mini_vectors -> mini_weights -> m3_mini make the small model.
Imports every room but benchmark, server and cli.
"""
