"""Eight ways of speaking.

Each is a function of a text in plain words, of whether it begins with an imperative, and of the
source of randomness; it returns the same wish as a speaker of the dialect would say it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from random import Random

from simulations.quickstart.grammar import pick

Dialect = Callable[[str, bool, Random], str]


def _replace_words(text: str, words: Mapping[str, str], rng: Random, rate: float = 1.0) -> str:
    """Replace whole words, each occurrence with probability ``rate``."""
    return re.sub(
        r"\b(" + "|".join(map(re.escape, words)) + r")\b",
        lambda match: words[match[0]] if rng.random() < rate else match[0],
        text,
    )


def _drop_words(text: str, words: frozenset[str], rng: Random, rate: float = 1.0) -> str:
    """Leave out words, each occurrence with probability ``rate``."""
    return " ".join(w for w in text.split() if w not in words or rng.random() >= rate)


def terse(text: str, imperative: bool, rng: Random) -> str:
    """Leave out articles and small words."""
    del imperative
    return _drop_words(text, frozenset({"the", "a", "an", "my", "some", "is", "it"}), rng, 0.9)


def polite(text: str, imperative: bool, rng: Random) -> str:
    """Wrap the wish in courtesies."""
    if imperative:
        text = pick(rng, ("could you please ", "would you kindly ", "please ")) + text
    else:
        text = pick(rng, ("excuse me, ", "sorry to bother you, ", "please, ")) + text
    return text + pick(rng, ("", "", ", thank you", ", if you do not mind", ", please"))


def chatty(text: str, imperative: bool, rng: Random) -> str:
    """Add an opening and hesitate between words."""
    del imperative
    words = []
    for word in text.split():
        if rng.random() < 0.1:
            words.append(pick(rng, ("um", "uh", "well", "you know", "like")))
        words.append(word)
    opening = pick(rng, ("okay so", "hey there,", "so", "oh, well,", "listen,"))
    return f"{opening} {' '.join(words)}{pick(rng, ('', '', ' okay', ', right'))}"


_REGIONAL = {
    "do not": "dinnae",
    "cannot": "cannae",
    "will not": "willnae",
    "not": "no",
    "down": "doon",
    "out": "oot",
    "about": "aboot",
    "off": "aff",
    "on": "oan",
    "window": "windae",
    "my": "ma",
    "to": "tae",
    "of": "o",
    "now": "the noo",
    "cold": "cauld",
    "know": "ken",
    "room": "rum",
    "door": "dur",
    "some": "a wee bit o",
    "too": "ower",
}


def regional(text: str, imperative: bool, rng: Random) -> str:
    """Use the words and spelling of one region."""
    del imperative
    return _replace_words(text, _REGIONAL, rng, 0.9) + pick(rng, ("", "", " aye", " lad"))


def learner(text: str, imperative: bool, rng: Random) -> str:
    """Put words in the order of another mother tongue and lose articles."""
    text = _drop_words(text, frozenset({"the", "a", "an"}), rng, 0.7)
    place = re.search(r" ((?:in|at|on|near|for) (?:\S+ ){0,2}\S+)$", text)
    if place and "," not in text and rng.random() < 0.6:
        text = f"{place[1]} {text[: place.start()]}"
    text = _replace_words(text, {"do not": "not to", "is": "is being", "make": "do"}, rng, 0.7)
    return pick(rng, ("please to ", "you must ", "")) + text if imperative else text


_FORMAL = {
    "do not": "you shall not",
    "car": "vehicle",
    "tell": "inform",
    "tv": "television",
    "phone": "telephone",
    "stop": "discontinue",
    "start": "commence",
    "find out": "establish",
    "find": "locate",
    "need": "require",
    "open": "unfasten",
    "check": "verify",
    "show": "present to",
    "close": "secure",
    "loud": "noisy",
    "quiet": "faint",
    "get to": "arrive at",
}


def formal(text: str, imperative: bool, rng: Random) -> str:
    """Choose elevated words and a ceremonious opening."""
    opening = (
        ("i request that you ", "it is necessary to ", "you are asked to ")
        if imperative
        else ("be advised: ", "i wish to state: ", "")
    )
    return pick(rng, opening) + _replace_words(text, _FORMAL, rng, 0.6)


_TEXTING = {
    "please": "pls",
    "you": "u",
    "to": "2",
    "for": "4",
    "are": "r",
    "the": "da",
    "light": "lite",
    "minutes": "min",
    "message": "msg",
    "kitchen": "kitchn",
    "bedroom": "bedrm",
    "living room": "lounge",
    "music": "tunes",
    "temperature": "temp",
    "do not": "dont",
    "and": "n",
    "be": "b",
    "no wait": "nvm",
    "know": "kno",
    "cannot": "cant",
    "i am": "im",
    "open": "opn",
    "with": "w",
    "turn": "trn",
}


def texting(text: str, imperative: bool, rng: Random) -> str:
    """Abbreviate as on a telephone keyboard."""
    del imperative
    text = _replace_words(text.replace(",", ""), _TEXTING, rng, 0.75)
    return text + pick(rng, ("", "", " pls", " thx", " asap", " lol"))


_HOMOPHONES = {
    "to": "two",
    "for": "four",
    "their": "there",
    "off": "of",
    "right": "write",
    "know": "no",
    "by": "buy",
    "hear": "here",
    "door": "dour",
    "way": "weigh",
    "hall": "haul",
    "air": "heir",
}


def _swap_letters(word: str, rng: Random) -> str:
    """Swap two neighbouring letters after the first."""
    i = 1 + int(rng.random() * (len(word) - 2))
    return word[:i] + word[i + 1] + word[i] + word[i + 2 :]


def misheard(text: str, imperative: bool, rng: Random) -> str:
    """Imitate voice recognition: no commas, lost words, homophones and swapped letters."""
    del imperative
    text = _drop_words(
        text.replace(",", ""), frozenset({"the", "a", "in", "to", "is", "it", "my", "of"}), rng, 0.2
    )
    words = []
    for word in _replace_words(text, _HOMOPHONES, rng, 0.25).split():
        heard = _swap_letters(word, rng) if len(word) > 4 and rng.random() < 0.1 else word
        words += [heard, heard] if rng.random() < 0.04 else [heard]
    return " ".join(words)


DIALECTS: Mapping[str, Dialect] = {
    "terse": terse,
    "polite": polite,
    "chatty": chatty,
    "regional": regional,
    "learner": learner,
    "formal": formal,
    "texting": texting,
    "misheard": misheard,
}
