"""BM25 (bm25s) and TF-IDF of character n-grams (scikit-learn) over the index's texts."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from danbooru_index.errors import UsageError
from danbooru_index.evaluation.metrics import DEPTH, INSTALL_EVALUATE, Run
from danbooru_index.evaluation.queries import Query
from danbooru_index.search.retriever import top_positive

TERM = re.compile(r"(?P<cjk>[぀-ヿ㐀-鿿豈-﫿ｦ-ﾟ]+)|[^\W_]+")
NGRAMS = (1, 3)


def bm25(texts: list[str], tags: list[str], queries: Sequence[Query]) -> Run:
    """BM25 over the texts: words as bm25s cuts them, CJK by character and pair of characters."""
    try:
        import bm25s
    except ImportError:
        raise _missing("bm25s") from None
    vocabulary: dict[str, int] = {}
    corpus = [
        [vocabulary.setdefault(term, len(vocabulary)) for term in _terms(text)] for text in texts
    ]
    asked = [
        [vocabulary[term] for term in _terms(query.text) if term in vocabulary] for query in queries
    ]
    if not vocabulary:  # a dump of kaomoji alone
        return [[] for _ in queries]
    retriever = bm25s.BM25()
    retriever.index((corpus, vocabulary), show_progress=False)
    found: Run = []
    for tokens in asked:
        if not tokens:
            found.append([])
            continue
        scores = retriever.get_scores_from_ids(tokens)
        found.append([tags[row] for row in top_positive(np.asarray(scores), DEPTH).tolist()])
    return found


def _terms(text: str) -> list[str]:
    """Words of letters and digits, lower case; runs of CJK as characters and pairs of them."""
    terms: list[str] = []
    for found in TERM.finditer(text.lower()):
        word = found[0]
        terms += (
            [*word, *(word[at : at + 2] for at in range(len(word) - 1))] if found["cjk"] else [word]
        )
    return terms


def char_tfidf(texts: list[str], tags: list[str], queries: Sequence[Query]) -> Run:
    """TF-IDF of character n-grams, cosine."""
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
    except ImportError:
        raise _missing("scikit-learn") from None
    vectorizer = TfidfVectorizer(analyzer="char_wb", ngram_range=NGRAMS, min_df=1, dtype=np.float32)
    known = vectorizer.fit_transform(text.replace("_", " ") for text in texts).T.tocsr()
    asked = vectorizer.transform(query.text.replace("_", " ") for query in queries)
    found: Run = []
    for row in range(asked.shape[0]):
        scores = np.asarray((asked[row] @ known).todense()).ravel()
        found.append([tags[place] for place in top_positive(scores, DEPTH).tolist()])
    return found


def _missing(package: str) -> UsageError:
    return UsageError(f"the baselines need {package}: {INSTALL_EVALUATE}, or --no-baselines")
