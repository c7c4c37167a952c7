"""Numbers of categories, site by site: what 5 means depends on whose dump it is."""

from __future__ import annotations

from collections.abc import Iterable

from danbooru_index.choices import Site

_DANBOORU = {0: "general", 1: "artist", 3: "copyright", 4: "character", 5: "meta"}
_E621 = {
    0: "general",
    1: "artist",
    2: "contributor",
    3: "copyright",
    4: "character",
    5: "species",
    6: "invalid",
    7: "meta",
    8: "lore",
}
CATEGORY_NAMES: dict[Site, dict[int, str]] = {
    Site.DANBOORU: _DANBOORU,
    Site.E621: _E621,
    Site.GELBOORU: {**_DANBOORU, 2: "deprecated", 6: "deprecated"},
    Site.DERPIBOORU: {
        0: "general",
        1: "content-official",
        3: "species",
        4: "oc",
        5: "rating",
        6: "body-type",
        7: "character",
        8: "origin",
        9: "error",
        10: "spoiler",
        11: "content-fanmade",
    },
    Site.MERGED: {**_DANBOORU, **{number + 7: name for number, name in _E621.items()}},
}
# Frequent tags whose number tells the sites apart.
MARKERS: dict[Site, dict[str, int]] = {
    Site.DANBOORU: {
        "highres": 5,
        "absurdres": 5,
        "commentary_request": 5,
        "touhou": 3,
        "original": 3,
        "hatsune_miku": 4,
    },
    Site.E621: {
        "mammal": 5,
        "canid": 5,
        "canine": 5,
        "felid": 5,
        **dict.fromkeys(("wolf", "fox", "dragon", "feline", "equid", "equine", "reptile"), 5),
        **dict.fromkeys(("scalie", "avian", "canis", "domestic_dog", "domestic_cat", "rodent"), 5),
        "hi_res": 7,
        "absurd_res": 7,
        "sibling_(lore)": 8,
    },
    Site.DERPIBOORU: {
        "safe": 5,
        "explicit": 5,
        "suggestive": 5,
        "pony": 3,
        "unicorn": 3,
        "oc": 4,
        "twilight_sparkle": 7,
        "screencap": 8,
    },
    Site.MERGED: {"mammal": 12, "canid": 12, "hi_res": 14, "anthro": 7},
}
STRAY_SHARE = 0.01  # numbers that a site does not have, up to which a dump may still be its own
KNOWN_WORDS = frozenset(
    {
        *(name for names in CATEGORY_NAMES.values() for name in names.values()),
        *("通用", "一般", "人物", "角色", "作品", "版权", "画师", "艺术家", "元数据", "元", "物种"),
    }
)


def detect_site(tags: Iterable[tuple[str, int]]) -> Site | None:
    """The site that (tag, category number) pairs come from; None where it is not plain.

    Frequent tags decide; without any, Danbooru, where it has nearly all of the numbers, else the
    only site that has them.
    """
    pairs = list(tags)
    if site := site_of_frequent_tags(pairs):
        return site
    fitting = [site for site in CATEGORY_NAMES if _strays(site, pairs) <= STRAY_SHARE * len(pairs)]
    if Site.DANBOORU in fitting:
        return Site.DANBOORU
    exact = [site for site in fitting if not _strays(site, pairs)] or fitting
    return exact[0] if len(exact) == 1 else None


def site_of_frequent_tags(pairs: Iterable[tuple[str, int]]) -> Site | None:
    """The site on which most of these tags have these numbers, if some are frequent ones."""
    pairs = list(pairs)
    marks = {
        site: sum(known.get(tag.replace(" ", "_").casefold()) == number for tag, number in pairs)
        for site, known in MARKERS.items()
    }
    most = max(marks.values(), default=0)
    marked = [site for site, count in marks.items() if count == most]
    return marked[0] if most and len(marked) == 1 else None


def _strays(site: Site, pairs: list[tuple[str, int]]) -> int:
    return sum(number not in CATEGORY_NAMES[site] for _, number in pairs)
