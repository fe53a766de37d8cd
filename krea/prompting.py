"""Prompt words: photography choices as sentences, and the rule that joins them to what the artist wrote.

FLUX.1 Krea [dev] reads prose through T5, and it was tuned away from the polished "AI look": so every choice is
a full sentence of concrete light, composition and material words, and none is a quality tag.
"""

NONE = "none"

CHOICES: dict[str, dict[str, str]] = {
    "use_case": {
        "portrait": "This is an honest portrait, with natural skin, focused eyes and an expression caught "
        "between two moments.",
        "fashion editorial": "This is a fashion editorial photograph, with a deliberate pose and clothes "
        "whose cut, folds and weave can be read.",
        "documentary": "This is a documentary photograph of an unposed moment, with the surroundings left "
        "just as they were found.",
        "street": "This is a candid street photograph of a passing moment, with nothing arranged for the camera.",
        "landscape": "This is a landscape photograph with a clear foreground, middle distance and horizon, "
        "and weather that can be felt.",
        "architecture": "This is an architectural photograph with straight verticals and true proportions, "
        "in which the building materials show their age.",
        "product": "This is a product photograph of a single object on a plain surface, with its edges, "
        "seams and material rendered exactly.",
        "food": "This is a food photograph of a freshly served dish, with crumbs, juices and steam left as "
        "they came from the kitchen.",
    },
    "camera": {
        "24mm f/8 full-frame": "The photograph is shot on a full-frame camera with a 24mm lens at f/8, wide "
        "and sharp from the foreground to the distance.",
        "35mm f/2 full-frame": "The photograph is shot on a full-frame camera with a 35mm lens at f/2, close "
        "to the subject and with the place around it still readable.",
        "50mm f/1.8 full-frame": "The photograph is shot on a full-frame camera with a 50mm lens at f/1.8, "
        "with the perspective of the eye and a gently soft background.",
        "85mm f/1.4 full-frame": "The photograph is shot on a full-frame camera with an 85mm lens at f/1.4, "
        "with shallow focus on the subject and the background far out of focus.",
        "200mm f/2.8 full-frame": "The photograph is shot on a full-frame camera with a 200mm telephoto lens "
        "at f/2.8, which brings far layers close together behind the subject.",
        "100mm f/5.6 macro": "The photograph is shot with a 100mm macro lens at f/5.6, close enough to fill "
        "the frame with small surface detail.",
        "80mm f/2.8 medium-format": "The photograph is shot on a medium-format camera with an 80mm lens at "
        "f/2.8, with long smooth tones and a slow fall from sharp to soft.",
        "smartphone": "The photograph is a snapshot taken with a smartphone at arm's length, with deep focus "
        "and casual framing.",
    },
    "film": {
        "Kodak Portra 400": "The film is Kodak Portra 400 colour negative, with warm skin tones, soft "
        "contrast and fine grain.",
        "Kodak Gold 200": "The film is Kodak Gold 200 colour negative, with golden warmth, plain contrast "
        "and visible grain.",
        "Kodak Ektar 100": "The film is Kodak Ektar 100 colour negative, with saturated reds and blues and "
        "very fine grain.",
        "Fujifilm Velvia 50": "The film is Fujifilm Velvia 50 slide film, with deep greens, dense shadows and "
        "strong contrast.",
        "CineStill 800T": "The film is CineStill 800T, balanced for lamplight, with cool shadows and a red glow around "
        "bright lamps.",
        "Kodak Tri-X 400": "The film is black-and-white Kodak Tri-X 400, with deep blacks and crisp grain.",
        "Ilford Delta 3200": "The film is black-and-white Ilford Delta 3200, with coarse grain and open grey shadows.",
        "instant film": "The film is instant, a small print with muted colours, lifted blacks and soft edges.",
    },
    "lighting": {
        "window light": "Soft daylight comes through a window from one side and falls off into shadow.",
        "overcast": "The light is flat grey daylight from an overcast sky, with faint shadows.",
        "golden hour": "Low golden sunlight comes in from the side shortly before sunset and throws long shadows.",
        "blue hour": "It is the blue hour after sunset, with dim blue light and the first warm lamps lit.",
        "midday sun": "Hard midday sun falls from above, with bright highlights and short dark shadows.",
        "direct flash": "A direct on-camera flash lights the scene, with a hard shadow close behind and a "
        "fast fall into darkness.",
        "studio softbox": "One large softbox in a studio lights the scene from the side, with a smooth fall "
        "from light to shade.",
        "neon night": "It is night, and neon signs light the scene with coloured reflections.",
    },
    "composition": {
        "close-up": "It is framed as a close-up, with the subject filling the frame.",
        "wide shot": "It is framed as a wide shot, with the subject small in its surroundings.",
        "rule of thirds": "The subject stands off centre on a third of the frame, and looks into the open space.",
        "symmetrical": "The composition is symmetrical and frontal, with the subject in the centre.",
        "low angle": "It is seen from a low angle, near the ground and looking up.",
        "overhead": "It is seen straight down from overhead.",
        "through the foreground": "It is seen past something out of focus in the near foreground, which "
        "frames the subject.",
        "negative space": "The subject is small within a large empty area of even tone.",
    },
}

TEXTURE_ENHANCEMENT = (
    "Every surface shows realistic texture, with fine detail, wear and small flaws. "
    "The light falls naturally, and the photograph looks authentic and unprocessed, straight out of the camera."
)

# Written as escapes, so that the file can be read on systems whose text encoding is not UTF-8.
_SENTENCE_ENDS = ".!?\u2026\u3002\uff01\uff1f\uff0e\u061f\u06d4\u0964\u0965"
_CLOSERS = "\"'\u201d\u2019\u00bb)]}\u300d\u300f\uff09\u3011*"
_LOOSE_ENDS = ",;:\u3001\uff0c\uff1b\uff1a-\u2013\u2014"


def compose(prompt: str, *, texture_enhancement: bool = True, **choices: str) -> str:
    """The prompt, followed by one sentence for each choice, then the texture enhancement.

    choices: for any of `CHOICES` (use_case, camera, film, lighting, composition) one of its keys or "none".
    With nothing chosen and no enhancement the prompt comes back unchanged.

    Raises ValueError for a choice that is not in its list.
    """
    unknown = choices.keys() - CHOICES.keys()
    if unknown:
        raise ValueError(f"Found the photography choice {min(unknown)!r}. Expected {', '.join(CHOICES)}.")
    sentences = [_sentence(name, key) for name in CHOICES if (key := choices.get(name, NONE)) != NONE]
    if texture_enhancement:
        sentences.append(TEXTURE_ENHANCEMENT)
    if not sentences:
        return prompt
    return " ".join(filter(None, [_close(prompt), *sentences]))


def _sentence(name: str, key: str) -> str:
    if key not in CHOICES[name]:
        raise ValueError(f"Found {key!r} as {name}. Expected {NONE}, {', '.join(CHOICES[name])}.")
    return CHOICES[name][key]


def _close(prompt: str) -> str:
    """The prompt with a full stop where its writer left the last sentence open."""
    text = prompt.rstrip()
    if text.rstrip(_CLOSERS).endswith(tuple(_SENTENCE_ENDS)):
        return text
    text = text.rstrip(_LOOSE_ENDS + " \t\r\n")
    return text and text + ("\u3002" if _is_chinese_or_japanese(text.rstrip(_CLOSERS)[-1:]) else ".")


def _is_chinese_or_japanese(character: str) -> bool:
    return "\u3040" <= character <= "\u30ff" or "\u3400" <= character <= "\u9fff"
