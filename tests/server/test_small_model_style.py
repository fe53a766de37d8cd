"""What style references do to krea-mini's pictures, through the shipped workflow: the bounds that its card states."""

from dev.mini.evaluate_style import image_prompts, strength_curve


def test_the_palette_follows_the_strength_and_the_subject_stays(server):
    figures = strength_curve(server)
    pulls = list(figures["pull"].values())
    assert len(pulls) == 11 and pulls[0] == 0
    assert all(more > less for less, more in zip(pulls, pulls[1:], strict=False)), pulls
    assert figures["subject right"]["0.5"] >= 0.8


def test_a_reference_without_words_is_painted_again(server):
    """As an image prompt: its subject's kind and colour, and its wall."""
    figures = image_prompts(server)
    assert figures["pictures"] == 12
    assert figures["right"] >= 0.75
