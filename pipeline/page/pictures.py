"""Pictures of both sides beside one another: predictions, where they flip, samples of the data."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.evidence_pictures import Picture, PicturePair
from pipeline.page.html import Markup, element, paragraph, section, table
from pipeline.page.parts import shown
from pipeline.page.source import NOT_RECORDED, Source


def flips_section(source: Source) -> Markup:
    """Return the class maps of both sides, and the pixels that flip."""
    pairs = source.evidence.predictions if source.evidence else []
    intro = (
        "The best class of every pixel on both sides, and where they disagree (bright). In float64 "
        "no pixel may flip; in float32 one may where two classes are nearly equal: the lead of the "
        "winner among flipped pixels says how nearly."
    )
    return _pairs_section("flips", "Predictions, and where they flip", pairs, intro)


def samples_section(source: Source) -> Markup:
    """Return samples of the data as both sides hand them to the network."""
    pairs = source.evidence.samples if source.evidence else []
    intro = (
        "Images and labels after all transforms, as each side's own data set yields them. Sides "
        "must be equal in every number. Black is void."
    )
    return _pairs_section("samples", "Data samples", pairs, intro)


def _pairs_section(identity: str, title: str, pairs: Sequence[PicturePair], intro: str) -> Markup:
    if not pairs:
        return section(identity, title, paragraph(NOT_RECORDED))
    parts = [element("div", element("h3", pair.title), _beside(pair)) for pair in pairs]
    head = ("picture", "pixels that differ", "of", "largest difference", "lead at flips")
    rows = [
        (pair.title, str(pair.differing), str(pair.size), shown(pair.largest), shown(pair.margin))
        for pair in pairs
    ]
    numbers = table(head, rows, caption=f"{title}, in numbers")
    return section(
        identity, title, paragraph(intro), element("div", *parts, class_="figures"), numbers
    )


def _beside(pair: PicturePair) -> Markup:
    named: list[tuple[str, Picture]] = []
    if pair.frame is not None:
        named.append(("image", pair.frame))
    named.append(("Torch", pair.torch))
    named.append(("Paddle", pair.paddle or pair.torch))
    if pair.apart is not None:
        named.append(("where they differ", pair.apart))
    shown_pictures = [_picture(picture, name, pair.title) for name, picture in named]
    same = paragraph("No pixel differs.") if pair.apart is None else None
    return Markup(element("div", *shown_pictures, class_="pictures") + (same or ""))


def _picture(picture: Picture, name: str, title: str) -> Markup:
    image = element(
        "img",
        src=f"data:image/{picture.kind};base64,{picture.data}",
        alt=f"{title}: {name}",
        width=picture.width,
        height=picture.height,
    )
    return element("figure", image, element("figcaption", name))
