"""What does a text become?

Text -> dense vector, sparse weights, ColBERT matrix, on a CPU or one GPU.

hub -> checkpoint_files, tensor_files, weights, vocabulary -> checkpoint -> device -> tokenizer ->
batch_plan, packing -> loading, layers, attention, onednn, packed_model -> shape, tuning, scheduler,
plain_model, device_run -> encoder; numpy_model, without torch; late_interaction (MaxSim).
Imports storage.
"""
