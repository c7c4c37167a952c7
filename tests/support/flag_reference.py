"""What FlagEmbedding computes: the reference of every test of parity."""


def flag_embedding(path, texts, max_length=512):
    """The three outputs of `BGEM3FlagModel.encode`, in fp32 on the CPU."""
    from FlagEmbedding import BGEM3FlagModel

    model = BGEM3FlagModel(str(path), use_fp16=False, devices="cpu")
    return model.encode(
        texts,
        return_dense=True,
        return_sparse=True,
        return_colbert_vecs=True,
        max_length=max_length,
    )
