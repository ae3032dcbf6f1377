"""Which DICOM objects are chest films a classifier may answer for, and what their headers say of the view."""

from __future__ import annotations

import re
from typing import Any

from pydicom.uid import UID

from cxr_ray.errors import DecodeError

# PS3.4 table B.5-1. Secondary captures are films that were scanned, converted or photographed.
_FILMS = frozenset(
    {
        "1.2.840.10008.5.1.4.1.1.1",  # Computed Radiography
        "1.2.840.10008.5.1.4.1.1.1.1",  # Digital X-Ray, for presentation
        "1.2.840.10008.5.1.4.1.1.1.1.1",  # Digital X-Ray, for processing
        "1.2.840.10008.5.1.4.1.1.7",  # Secondary Capture, and its multi-frame forms
        "1.2.840.10008.5.1.4.1.1.7.1",
        "1.2.840.10008.5.1.4.1.1.7.2",
        "1.2.840.10008.5.1.4.1.1.7.3",
        "1.2.840.10008.5.1.4.1.1.7.4",
    }
)
_STANDARD = "1.2.840.10008."
# A secondary capture may hold anything; its modality says what (PS3.3 C.7.3.1.1.1).
_OTHER_MODALITIES = {
    "BMD": "a bone density scan",
    "CT": "a CT image",
    "ECG": "an electrocardiogram",
    "ES": "an endoscopic image",
    "IO": "a dental image",
    "IVUS": "an ultrasound image",
    "MG": "a mammogram",
    "MR": "an MR image",
    "NM": "a nuclear medicine image",
    "OCT": "an optical coherence tomogram",
    "OP": "an ophthalmic photograph",
    "PT": "a PET image",
    "PX": "a dental image",
    "RF": "a fluoroscopic image",
    "SM": "a microscopic image",
    "SR": "a report",
    "US": "an ultrasound image",
    "XA": "an angiogram",
}
_LATERAL_WORDS = frozenset({"LAT", "LATERAL", "LATERALE", "PERFIL", "PROFIL", "SEITLICH"})
_FRONTAL_WORDS = frozenset({"PA", "AP", "FRONTAL", "VIEWS", "DECUB", "DECUBITUS"})


def check_kind(header: Any) -> None:
    """Refuse objects that are not projection radiographs; those that do not say what they are pass.

    Args:
        header: A pydicom Dataset.

    Raises:
        DecodeError: ``unsupported``, naming what the object is.
    """
    kind = str(header.get("SOPClassUID", "") or "")
    if kind.startswith(_STANDARD) and kind not in _FILMS:
        name = UID(kind).name
        if "Rows" not in header:
            raise DecodeError(f"is a DICOM object without an image ({name})", code="unsupported")
        raise DecodeError(f"is a DICOM object of the kind {name}, not a radiograph", code="unsupported")
    if "Rows" not in header or "Columns" not in header:
        kind = UID(kind).name if kind else "of an unknown kind"
        raise DecodeError(f"is a DICOM object without an image ({kind})", code="unsupported")
    modality = str(header.get("Modality", "") or "").strip().upper()
    if modality in _OTHER_MODALITIES:
        what = _OTHER_MODALITIES[modality]
        raise DecodeError(f"is {what} (DICOM modality {modality}), not a radiograph", code="unsupported")


def view_of(header: Any) -> str | None:
    """ViewPosition; where it is empty, LATERAL if another field leaves no doubt.

    Those are View Code Sequence (PS3.3 C.8.11.5), Patient Orientation, whose rows run from front to back in a
    lateral view (PS3.3 C.7.6.1.1.1), and the descriptions of series and protocol, if they speak of no other view.
    """
    if view := text_of(header, "ViewPosition"):
        return view
    codes = header.get("ViewCodeSequence") or []
    if codes:
        meaning = _words(str(codes[0].get("CodeMeaning", "") or ""))
        return "LATERAL" if "LATERAL" in meaning and not {"OBLIQUE", "DECUBITUS"} & set(meaning) else None
    rows = str((text_of(header, "PatientOrientation") or "").split("\\")[0])
    if rows:
        return "LATERAL" if rows in ("A", "P") else None
    described = [_words(text_of(header, name) or "") for name in ("SeriesDescription", "ProtocolName")]
    words = {word for text in described for word in text}
    return "LATERAL" if words & _LATERAL_WORDS and not words & _FRONTAL_WORDS else None


def text_of(header: Any, keyword: str) -> str | None:
    """An element as text, several values with backslashes between them as in the file; None where it is empty."""
    value = header.get(keyword, "")
    if value is None:
        return None
    values = [value] if isinstance(value, str) or not hasattr(value, "__iter__") else list(value)
    return "\\".join(str(value) for value in values).strip() or None


def _words(text: str) -> list[str]:
    return re.findall(r"[A-Z]+", text.upper().replace(".", ""))
