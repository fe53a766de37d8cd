"""What the file of a saved picture may be, and what it may say of its making: the words of nodes and of the client."""

from enum import Enum

SUFFIXES = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}
"""File format -> the end of a file's name."""


class DigitalSourceType(Enum):
    """Terms of the IPTC vocabulary at cv.iptc.org/newscodes/digitalsourcetype."""

    GENERATED = "trainedAlgorithmicMedia"  # made wholly by AI
    EDITED = "compositeWithTrainedAlgorithmicMedia"  # another picture, changed by AI

    @property
    def uri(self) -> str:
        return f"http://cv.iptc.org/newscodes/digitalsourcetype/{self.value}"


DISCLOSURES = {
    "made by AI": DigitalSourceType.GENERATED,
    "edited by AI": DigitalSourceType.EDITED,
    "none": None,
}
"""The choices of disclosure; the first one is the default."""
