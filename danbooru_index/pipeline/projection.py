"""Fitting a ColBERT projection on the input, before anything is built, on a worker.

Called by `pipeline`. A projection that an unfinished or finished generation of the same input
already has is taken over, so that a build goes on where it was.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import NamedTuple

from danbooru_index.cluster.resources import ClusterPlan, on_worker
from danbooru_index.embeddings import TokenBatch
from danbooru_index.errors import BuildFailedError, DanbooruIndexError, StorageError
from danbooru_index.index.catalog import IndexRoot
from danbooru_index.index.codec import FULL, Codec, Fidelity, agreement, family, fit
from danbooru_index.index.manifest import Fingerprint
from danbooru_index.ingest.sampling import InputSamples
from danbooru_index.model.encoder import Encoder
from danbooru_index.model.late_interaction import max_sim
from danbooru_index.pipeline.protocol import WorkerSettings
from danbooru_index.pipeline.worker_model import load_encoder, load_tokenizer

log = logging.getLogger(__name__)

# records: fewer are not divided into those that are fitted on and those that are measured
SMALL = 2048


class Projection(NamedTuple):
    """A projection of ColBERT vectors, and what it costs."""

    codec: Codec
    fidelity: Fidelity


def obtain(
    root: IndexRoot,
    fingerprint: Fingerprint,
    input_digest: str,
    samples: InputSamples,
    plan: ClusterPlan,
    settings: WorkerSettings,
) -> Projection:
    """The projection to `settings.colbert_dim` values of this input under this model, and what it
    costs.

    Raises `BuildFailedError` where it cannot be fitted.
    """
    found = _known(root, fingerprint, input_digest, settings.colbert_dim)
    if found is not None:
        return found
    log.info(f"fitting the projection of ColBERT vectors to {settings.colbert_dim} values")
    texts, questions = list(samples.projection), list(samples.questions)
    answer: Projection | str = on_worker(
        plan.num_gpus, plan.num_cpus, fit_on_worker, settings, texts, questions
    )
    if isinstance(answer, str):
        raise BuildFailedError(f"the projection of ColBERT vectors could not be fitted: {answer}")
    return answer


def refuse_below(fidelity: Fidelity, least: float) -> None:
    """Raise `BuildFailedError` if a projection keeps less than `least` of the full top 10."""
    if fidelity.overlap < least:
        raise BuildFailedError(
            f"{fidelity.to_text()}: below --min-fidelity {least}, nothing was built; choose a"
            " larger --colbert-dim, or leave it out, or lower --min-fidelity"
        )


def _known(
    root: IndexRoot, fingerprint: Fingerprint, input_digest: str, dim: int
) -> Projection | None:
    """What the newest generation of this input that differs in nothing but the matrix has."""
    for generation in reversed(root.generations()):
        manifest = generation.manifest
        same = (
            manifest.input_digest == input_digest
            and replace(manifest.fingerprint, codec=FULL) == fingerprint
        )
        if same and manifest.fingerprint.codec.startswith(family(dim)):
            try:
                codec = generation.load_codec()
            except StorageError:
                continue
            return Projection(codec, manifest.fidelity) if codec and manifest.fidelity else None
    return None


def fit_on_worker(
    settings: WorkerSettings, texts: list[str], questions: list[str]
) -> Projection | str:
    """Fit on one half of the records and measure on the other (on all, where they are few); or what
    went wrong.
    """
    try:
        tokenizer, encoder = load_tokenizer(settings), load_encoder(settings)
        fitted, measured = (texts, texts) if len(texts) <= SMALL else (texts[::2], texts[1::2])
        dims = (settings.colbert_dim,)
        return fit_and_measure(
            encoder, tokenizer(fitted), tokenizer(measured), tokenizer(questions), dims
        )[0]
    except DanbooruIndexError as error:
        return str(error)


def fit_and_measure(
    encoder: Encoder,
    fitted: TokenBatch,
    measured: TokenBatch,
    questions: TokenBatch,
    dims: tuple[int, ...],
) -> list[Projection]:
    """A projection to each of `dims` values, fitted on some texts, measured on questions."""
    moment = encoder.second_moment(fitted)  # [D, D]
    records, asked = encoder.encode(measured), encoder.encode(questions)
    full = max_sim(asked.matrices, records.matrices)  # [questions, records]
    sizes = {
        "queries": len(questions.lengths),
        "records": len(measured.lengths),
        "fitted_on": len(fitted.lengths),
    }
    found = []
    for dim in dims:
        codec, energy = fit(moment, dim)
        overlap, spearman = agreement(
            full, max_sim(codec.project(asked.matrices), codec.project(records.matrices))
        )
        found.append(
            Projection(codec, Fidelity(dim, encoder.dim, overlap, spearman, energy, **sizes))
        )
    return found
