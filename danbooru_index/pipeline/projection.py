"""Fitting a ColBERT projection on the input, before anything is built, on a worker.

Called by `pipeline`. A projection that an unfinished or finished generation of the same input
already has is taken over, so that a build goes on where it was. A build that uses vectors again
keeps the published generation's projection, whose cost is measured on the input of now.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import NamedTuple

from danbooru_index.cluster.resources import ClusterPlan, on_worker
from danbooru_index.config import BuildConfig
from danbooru_index.embeddings import TokenBatch
from danbooru_index.errors import BuildFailedError, DanbooruIndexError, StorageError
from danbooru_index.index.catalog import Generation, IndexRoot
from danbooru_index.index.codec import FULL, Codec, Fidelity, agreement, energy_kept, family, fit
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
    config: BuildConfig,
) -> Projection:
    """The projection to `settings.colbert_dim` values of this input under this model, and what it
    costs; a build that uses vectors again keeps that of the published generation, if its fidelity
    is still enough.

    Raises `BuildFailedError` where none can be fitted, or it keeps too little.
    """
    found = _known(root, fingerprint, input_digest, settings.colbert_dim)
    if found is not None:
        refuse_below(found.fidelity, config.min_fidelity)
        return found
    kept = _last_kept(root, fingerprint, settings.colbert_dim) if config.reuse else None
    least, verb = config.min_fidelity, "fitting" if kept is None else "measuring"
    log.info(f"{verb} the projection of ColBERT vectors to {settings.colbert_dim} values")
    texts, questions = list(samples.projection), list(samples.questions)
    answer: Projection | str = on_worker(
        plan.num_gpus, plan.num_cpus, fit_on_worker, settings, texts, questions, kept
    )
    if kept and isinstance(answer, Projection) and answer.fidelity.overlap < least:
        log.info(f"{answer.fidelity.to_text()}: below {least}, another is fitted")
        answer = on_worker(plan.num_gpus, plan.num_cpus, fit_on_worker, settings, texts, questions)
    if isinstance(answer, str):
        raise BuildFailedError(f"the projection of ColBERT vectors could not be fitted: {answer}")
    refuse_below(answer.fidelity, least)
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
        if generation.manifest.input_digest == input_digest:
            found = _of(generation, fingerprint, dim)
            if found is not None:
                return found
    return None


def _last_kept(root: IndexRoot, fingerprint: Fingerprint, dim: int) -> Projection | None:
    """What the published generation has, if it differs in nothing but the matrix."""
    try:
        return _of(root.current(), fingerprint, dim)
    except StorageError:
        return None


def _of(generation: Generation, fingerprint: Fingerprint, dim: int) -> Projection | None:
    manifest = generation.manifest
    if replace(manifest.fingerprint, codec=FULL) != fingerprint:
        return None
    if not manifest.fingerprint.codec.startswith(family(dim)):
        return None
    try:
        codec = generation.load_codec()
    except StorageError:
        return None
    return Projection(codec, manifest.fidelity) if codec and manifest.fidelity else None


def fit_on_worker(
    settings: WorkerSettings, texts: list[str], questions: list[str], kept: Projection | None = None
) -> Projection | str:
    """Fit on one half of the records and measure on the other (on all, where they are few), or only
    measure what is `kept`; or what went wrong.
    """
    try:
        tokenizer, encoder = load_tokenizer(settings), load_encoder(settings)
        fitted, measured = (texts, texts) if len(texts) <= SMALL else (texts[::2], texts[1::2])
        batches = tokenizer(fitted), tokenizer(measured), tokenizer(questions)
        if kept is None:
            return fit_and_measure(encoder, *batches, (settings.colbert_dim,))[0]
        share = energy_kept(encoder.second_moment(batches[0]), kept.codec)
        [found] = _measure(encoder, batches[1], batches[2], [(kept.codec, share)])
        return found._replace(fidelity=replace(found.fidelity, fitted_on=kept.fidelity.fitted_on))
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
    found = _measure(encoder, measured, questions, [fit(moment, dim) for dim in dims])
    return [
        one._replace(fidelity=replace(one.fidelity, fitted_on=len(fitted.lengths))) for one in found
    ]


def _measure(
    encoder: Encoder, measured: TokenBatch, questions: TokenBatch, codecs: list[tuple[Codec, float]]
) -> list[Projection]:
    """What each codec costs, given with the share of the energy that it keeps; `fitted_on` is 0."""
    records, asked = encoder.encode(measured), encoder.encode(questions)
    full = max_sim(asked.matrices, records.matrices)  # [questions, records]
    sizes = {"queries": len(questions.lengths), "records": len(measured.lengths), "fitted_on": 0}
    found = []
    for codec, energy in codecs:
        overlap, spearman = agreement(
            full, max_sim(codec.project(asked.matrices), codec.project(records.matrices))
        )
        found.append(
            Projection(
                codec,
                Fidelity(codec.matrix.shape[1], encoder.dim, overlap, spearman, energy, **sizes),
            )
        )
    return found
