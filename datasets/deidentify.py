"""What a derived DICOM file takes over from its source, with the patient or without.

Only listed attributes are taken. Whatever else a source holds, such as private elements, comments,
thumbnails, requests, and statistics and presets of the old pixels, has no way into a new file.
"""

import copy
import hashlib
import hmac
import math
import re
import uuid
from collections.abc import MutableSequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydicom import Dataset

SECRET_BYTES = 16
"""Shorter secrets can be found by trying them all on a known number."""

OURS = re.compile(r"(Standard deviation( in HU)?: )?recon [a-z_]+, \d+ draw\(s\)")
"""What ``recon reconstruct`` says of its images: a sampler and a number, whoever is shown."""

# Numbers: how the scan was made and where its pixels lie. Doses, kernels, windows and values of
# the old pixels are not among them, as they do not hold for new ones.
NUMBERS = (
    "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness",
    "SliceLocation", "SeriesNumber", "AcquisitionNumber", "TemporalPositionIdentifier",
    "NumberOfTemporalPositions", "LossyImageCompressionRatio",
    "KVP", "DataCollectionDiameter", "ReconstructionDiameter", "DistanceSourceToDetector",
    "DistanceSourceToPatient", "GantryDetectorTilt", "TableHeight", "ExposureTime",
    "XRayTubeCurrent", "Exposure", "GeneratorPower", "FocalSpots", "RevolutionTime",
    "SingleCollimationWidth", "TotalCollimationWidth", "TableSpeed", "TableFeedPerRotation",
    "SpiralPitchFactor",
    "RepetitionTime", "EchoTime", "InversionTime", "EchoNumbers", "EchoTrainLength", "FlipAngle",
    "NumberOfAverages", "ImagingFrequency", "MagneticFieldStrength", "PixelBandwidth",
    "NumberOfPhaseEncodingSteps", "AcquisitionMatrix",
)  # fmt: skip

UNPAIRED = (
    "ABDOMEN ABDOMENPELVIS AORTA BRAIN CHEST CHESTABDOMEN CHESTABDPELVIS COLON CSPINE HEAD "
    "HEADNECK HEART LIVER LSPINE NECK PANCREAS PELVIS PROSTATE SKULL SPINE SPLEEN SSPINE TSPINE "
    "UTERUS WHOLEBODY"
)
"""Parts of the body, by the terms of PS3.16 annex L, of which there is one."""

# Codes, and the terms PS3.3 gives for each: some scanners let a user type into these.
TERMS = {
    "PatientPosition": "HFP HFS HFDR HFDL FFDR FFDL FFP FFS",
    "BodyPartExamined": f"{UNPAIRED} ANKLE ARM BREAST CAROTID CLAVICLE ELBOW EXTREMITY FOOT HAND "
    "HIP HUMERUS KIDNEY KNEE LEG LUNG ORBIT SHOULDER THIGH WRIST",
    "Laterality": "R L",
    "BurnedInAnnotation": "YES NO",
    "RecognizableVisualFeatures": "YES NO",
    "LossyImageCompression": "00 01",
    "LossyImageCompressionMethod": "ISO_10918_1 ISO_14495_1 ISO_15444_1 ISO_15444_15 ISO_13818_2",
    "RotationDirection": "CW CC",
    "ScanningSequence": "SE IR GR EP RM",
    "SequenceVariant": "SK MTC SS TRSS SP MP OSP TOF NONE",
    "ScanOptions": "PER RG CG PPG FC PFF PFP SP FS",
    "MRAcquisitionType": "2D 3D",
    "InPlanePhaseEncodingDirection": "ROW COL",
    "VariableFlipAngleFlag": "Y N",
}

# The patient, the study, and texts of the scan.
IDENTITY = (
    "SpecificCharacterSet", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID",
    "PatientName", "PatientID", "IssuerOfPatientID", "TypeOfPatientID", "PatientBirthDate",
    "PatientBirthTime", "PatientSex", "OtherPatientIDs", "OtherPatientIDsSequence",
    "OtherPatientNames", "EthnicGroup", "PatientComments",
    "PatientSpeciesDescription", "PatientSpeciesCodeSequence", "PatientBreedDescription",
    "PatientBreedCodeSequence", "BreedRegistrationSequence", "ResponsiblePerson",
    "ResponsiblePersonRole", "ResponsibleOrganization",
    "ClinicalTrialSponsorName", "ClinicalTrialProtocolID", "ClinicalTrialProtocolName",
    "ClinicalTrialSiteID", "ClinicalTrialSiteName", "ClinicalTrialSubjectID",
    "ClinicalTrialSubjectReadingID", "ClinicalTrialTimePointID",
    "ClinicalTrialTimePointDescription",
    "StudyDate", "StudyTime", "StudyID", "AccessionNumber", "IssuerOfAccessionNumberSequence",
    "StudyDescription", "ReferringPhysicianName", "ReferringPhysicianIdentificationSequence",
    "ConsultingPhysicianName", "PhysiciansOfRecord", "PhysiciansOfRecordIdentificationSequence",
    "NameOfPhysiciansReadingStudy", "RequestingService", "ReferencedStudySequence",
    "ProcedureCodeSequence", "ReasonForPerformedProcedureCodeSequence",
    "AdmittingDiagnosesDescription", "AdmittingDiagnosesCodeSequence", "PatientAge",
    "PatientSize", "PatientWeight", "PatientSexNeutered", "PregnancyStatus", "MedicalAlerts",
    "Allergies", "SmokingStatus", "PatientState", "Occupation", "AdditionalPatientHistory",
    "AdmissionID", "ServiceEpisodeID", "ServiceEpisodeDescription",
    "PatientIdentityRemoved", "DeidentificationMethod", "DeidentificationMethodCodeSequence",
    "LongitudinalTemporalInformationModified",
    "AcquisitionDate", "AcquisitionTime", "AcquisitionDateTime", "PositionReferenceIndicator",
    "ProtocolName", "SequenceName", "ContrastBolusAgent", "ImagedNucleus",
)  # fmt: skip

UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")

_EQUIPMENT = ("Manufacturer", "InstitutionName", "InstitutionAddress", "StationName",
              "ManufacturerModelName", "DeviceSerialNumber", "SoftwareVersions")  # fmt: skip


def numbers(header: "Dataset", keyword: str) -> list[float]:
    """The finite numbers of an attribute; none where it is missing, empty or anything else."""
    try:
        value = header.get(keyword)
        if value in (None, "") or isinstance(value, bytes):
            return []
        found = [float(v) for v in ([value] if isinstance(value, str | int | float) else value)]
    except (ValueError, TypeError, OverflowError):
        return []
    return found if all(map(math.isfinite, found)) else []


def decimal_string(value: float) -> str:
    """A number in the 16 characters of DICOM's decimal strings: exact to 1e-10 of itself."""
    from pydicom.valuerep import format_number_as_ds

    return format_number_as_ds(float(value) + 0.0)  # -0.0 becomes 0.0


def coded(code: str, scheme: str, meaning: str) -> "Dataset":
    """The item of a code sequence."""
    from pydicom import Dataset

    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code, scheme, meaning
    return item


def carried(header: "Dataset") -> "Dataset":
    """What of a source's header holds for an image derived from it, patient included.

    ``SOPClassUID`` and ``SOPInstanceUID`` are the source's, the latter left out where it has none.
    """
    out = _scan(header)
    for keyword in (*TERMS, *IDENTITY):
        if keyword in header:
            out.add(copy.deepcopy(header[keyword]))
    equipment = [copy.deepcopy(item) for item in header.get("ContributingEquipmentSequence") or ()]
    if header.get("Manufacturer"):
        equipment.append(_equipment(header))
    if equipment:
        out.ContributingEquipmentSequence = equipment
    for keyword, value in _instance(header).items():
        setattr(out, keyword, value)
    out.remove_private_tags()
    return out


def deidentified(header: "Dataset", secret: bytes) -> "Dataset":
    """The same without the patient: PS3.15 annex E, basic profile, as a list of what may stay.

    What stays are numbers of the scan and geometry, and codes that are terms of the standard. Dates
    are gone. UIDs, and the number that stands for the patient, are keyed hashes: the same for
    the same source and ``secret``, and of no use without it. The faces that a head scan shows
    stay in its pixels.

    Raises
    ------
    ValueError
        The pixels of the source are marked as showing text, or ``secret`` is short.
    """
    if len(secret) < SECRET_BYTES:
        raise ValueError(f"secret: want {SECRET_BYTES} bytes or more, got {len(secret)}: "
                         "secrets.token_bytes(32) makes one")  # fmt: skip
    if str(header.get("BurnedInAnnotation")).upper() == "YES":
        raise ValueError("deidentify: BurnedInAnnotation is YES, so the pixels may show a name, "
                         "which is not removed from them")  # fmt: skip
    out = _scan(header)
    for keyword, terms in TERMS.items():
        value = header.get(keyword)
        values = value if isinstance(value, MutableSequence) else [value]
        kept = [v for v in values if v in terms.split()]
        if kept:
            setattr(out, keyword, _one_or_more(kept))
    uids = {key: header.get(key) for key in UIDS}
    for keyword, uid in (uids | _instance(header)).items():
        if uid:
            setattr(out, keyword, uid if keyword == "SOPClassUID" else mapped_uid(uid, secret))
    patient = header.get("PatientID") or uids["StudyInstanceUID"] or uids["FrameOfReferenceUID"]
    pseudonym = _keyed(str(patient), "patient", secret).hex()[:12].upper()
    out.PatientID, out.PatientName = f"ANON{pseudonym}", f"ANON{pseudonym}^"
    out.PatientIdentityRemoved = "YES"
    out.DeidentificationMethod = "Only listed attributes kept; UIDs replaced by keyed hashes"
    out.DeidentificationMethodCodeSequence = [
        coded("113100", "DCM", "Basic Application Confidentiality Profile")
    ]
    out.LongitudinalTemporalInformationModified = "REMOVED"
    return out


def mapped_uid(uid: str, secret: bytes) -> str:
    """The UID that stands for another: below 2.25 (PS3.5 B.2), from a keyed hash."""
    number = uuid.UUID(bytes=_keyed(str(uid), "uid", secret)[:16], version=5).int
    return f"2.25.{number}"


def refuse_identity(text: str, header: "Dataset") -> None:
    """Refuse words of the caller's that name the patient; the error does not repeat them.

    Short names and numbers count as whole words, for "draws" names no Dra; longer ones inside words
    too, for "Smiths" does name him. What ``recon reconstruct`` says of everyone's images names
    nobody, not even a Draw.
    """
    if OURS.fullmatch(text):
        return
    names = re.split(r"[\^=, ]+", str(header.get("PatientName") or ""))
    numbers_ = (str(header.get(key) or "") for key in ("PatientID", "AccessionNumber"))
    parts = [part.casefold() for part in (*names, *numbers_) if len(part) > 2]
    if any(_named(part, text.casefold()) for part in parts):
        raise ValueError("description: holds the patient's name, ID or accession number, which "
                         "deidentify=True is to keep out: choose other words")  # fmt: skip


def _named(part: str, text: str) -> bool:
    if not part.isascii() or (len(part) > 3 and not part.isdigit()):
        return part in text  # some scripts have no spaces between words
    # neither letters beside letters nor digits beside digits, so that case4711 has 4711
    digit, letter = r"\d", r"[^\W\d_]"
    first, last = (digit if end.isdigit() else letter for end in (part[0], part[-1]))
    return re.search(f"(?<!{first}){re.escape(part)}(?!{last})", text) is not None


def _scan(header: "Dataset") -> "Dataset":
    """The listed numbers, written anew, so that nothing but a number can pass."""
    from pydicom import Dataset
    from pydicom.datadict import dictionary_VR

    out = Dataset()
    for keyword in NUMBERS:
        values = numbers(header, keyword)
        vr = dictionary_VR(keyword)
        if not values or (vr in ("IS", "US") and not all(map(float.is_integer, values))):
            continue
        if vr == "DS":
            entry = header[keyword].value
            texts = [str(v) for v in ([entry] if len(values) == 1 else entry)]
            # as it stands where it may, which is the one way to keep every digit
            setattr(out, keyword, _one_or_more([
                text if re.fullmatch(r"[-+.0-9eE]{1,16}", text) else decimal_string(value)
                for text, value in zip(texts, values, strict=True)
            ]))  # fmt: skip
        else:
            setattr(out, keyword, _one_or_more(values if vr == "FD" else [int(v) for v in values]))
    return out


def _instance(header: "Dataset") -> dict[str, str]:
    """Class and UID of the image; some anonymisers empty them but not their copies in the file."""
    meta = getattr(header, "file_meta", {})
    pairs = (("SOPClassUID", "MediaStorageSOPClassUID"),
             ("SOPInstanceUID", "MediaStorageSOPInstanceUID"))  # fmt: skip
    found = {key: header.get(key) or meta.get(spare) for key, spare in pairs}
    return {key: str(uid) for key, uid in found.items() if uid}


def _one_or_more(values: list[Any]) -> Any:
    return values[0] if len(values) == 1 else values


def _equipment(header: "Dataset") -> "Dataset":
    """The scanner, or what derived the source: PS3.3 C.12.1.1.5 wants it beside ourselves."""
    from pydicom import Dataset

    item = Dataset()
    for keyword in _EQUIPMENT:
        if header.get(keyword):
            item.add(copy.deepcopy(header[keyword]))
    derived = "DERIVED" in (header.get("ImageType") or ())
    item.PurposeOfReferenceCodeSequence = [
        coded("109102", "DCM", "Processing Equipment") if derived
        else coded("109101", "DCM", "Acquisition Equipment")
    ]  # fmt: skip
    return item


def _keyed(text: str, purpose: str, secret: bytes) -> bytes:
    return hmac.digest(secret, f"{purpose}:{text}".encode(), hashlib.sha256)
