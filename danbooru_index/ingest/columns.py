"""Names of columns and keys, in any order and in four languages -> the fields of a record."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from danbooru_index.choices import Choice


class Field(Choice):
    """What a column of a dump can hold. `text` is embedded as it stands; where there is none, the
    text is made of category, tag, `explanation` (translations), `aliases` and `description`.
    """

    ID = "id"
    TEXT = "text"
    TAG = "tag"
    CATEGORY = "category"
    POST_COUNT = "post_count"
    EXPLANATION = "explanation"
    ALIASES = "aliases"
    DESCRIPTION = "description"
    SOURCE = "source"
    NSFW = "nsfw"
    RATING = "rating"
    DEPRECATED = "deprecated"
    METADATA = "metadata"


SEVERAL = (Field.EXPLANATION, Field.ALIASES, Field.DESCRIPTION)  # fields that take several columns

# In order of preference: of `name,title` the first is the tag.
NAMES: dict[Field, str] = {
    Field.ID: "id tag_id tagid 编号 編號",
    Field.TEXT: "text",
    Field.TAG: (
        "tag name tag_name tagname tags en english en_name name_en english_name title"
        " tag_en prompt keyword keywords key word danbooru_tag"
        " 标签 標籤 英文 英文名 英文标签 标签名 关键词 提示词 原文 词条"
        " タグ タグ名 タグ一覧 英語 英名 태그"
    ),
    Field.CATEGORY: (
        "category categories type tag_type cat category_id type_id tag_category"
        " 分类 分類 类别 類別 类型 類型 カテゴリ カテゴリー 種類 種別"
    ),
    Field.POST_COUNT: (
        "post_count postcount posts count num_posts tag_count post_counts posts_count frequency"
        " freq usage_count uses images image_count 数量 數量 计数 計數 帖子数 作品数 图片数"
        " 使用次数 投稿数 件数 投稿件数 使用数"
    ),
    Field.EXPLANATION: (
        "explanation translation translations translated zh cn zh_cn zh_hans zh_tw zh_hant chs cht"
        " cn_name zh_name name_zh name_cn chinese chinese_name ja jp ja_jp ja_name jp_name name_ja"
        " name_jp japanese japanese_name ko kr ko_name 中文 中文名 中文名称 中文翻译 中文译名 翻译"
        " 翻譯 翻訳 译文 译名 繁体 繁體 简体 日本語 日本語名 日文 日文名 日语 和訳 訳 訳語 意味"
        " tag_zh tag_cn 译文 中文含义 中文释义 中文解释 中文说明 한국어 번역 名称 名稱 名字 名前"
    ),
    Field.ALIASES: (
        "aliases alias synonyms synonym other_names other_name alternative_names alt_names"
        " aliased_tags 别名 別名 其他名称 同义词 同義詞 同義語 エイリアス 別名義"
    ),
    Field.DESCRIPTION: (
        "description descriptions desc wiki wiki_body body notes note definition meaning summary"
        " 说明 說明 描述 解释 解釋 备注 備註 注释 简介 説明 解説 備考"
    ),
    Field.SOURCE: "source",
    Field.NSFW: "nsfw is_nsfw r18 r_18 adult 成人",
    Field.RATING: "rating 分级 分級 レーティング 年齢制限",
    Field.DEPRECATED: "deprecated is_deprecated 废弃 廢棄 已弃用 非推奨",
    Field.METADATA: "metadata",
}
# Names that mean the tag only where no other column does.
TAG_AT_LAST = ("名称", "名稱", "名字", "名前")
_FIELD_OF = {name: field for field, names in NAMES.items() for name in names.split()}

Columns = dict[Field, tuple[str, ...]]


def normal_name(name: str) -> str:
    """A column's name without case, width, and the kind of its separators."""
    folded = unicodedata.normalize("NFKC", name).strip().casefold()
    return re.sub(r"[\s\-./:]+", "_", folded.lstrip("#")).strip("_")


def field_of(name: str) -> Field | None:
    """The field that a column of this name holds, if the name is known; also without what stands
    in its brackets: `Tag (EN)`.
    """
    known = _FIELD_OF.get(normal_name(name))
    return known or _FIELD_OF.get(normal_name(re.sub(r"[(（].*?[)）]", "", name)))


def recognise(names: Iterable[str]) -> Columns:
    """Which columns hold which field, by their names. Of several columns for a field that takes
    one, the name that stands first in `NAMES` counts.
    """
    found: dict[Field, list[str]] = {}
    for name in names:
        field = field_of(name)
        if field is not None:
            found.setdefault(field, []).append(name)
    if Field.TAG not in found:
        at_last = [n for n in found.get(Field.EXPLANATION, ()) if normal_name(n) in TAG_AT_LAST]
        if at_last:
            found[Field.EXPLANATION].remove(at_last[0])
            found[Field.TAG] = [at_last[0]]
    return {
        field: tuple(columns) if field in SEVERAL else (_preferred(field, columns),)
        for field, columns in found.items()
        if columns
    }


def _preferred(field: Field, columns: list[str]) -> str:
    order = NAMES[field].split()
    known = {name: place for place, name in enumerate(order)}
    return min(columns, key=lambda column: known.get(normal_name(column), len(order)))
