"""CycloneDX bill of materials of a bundle: the models, the data, the tools. Pure.

A dictionary of our own: cyclonedx-python-lib 11 has no ``modelCard``. Its copy of the schema is the tests' oracle.

Source: CycloneDX 1.6, ``bom-1.6.schema.json``, definitions ``component``, ``modelCard``, ``performanceMetric``.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Sequence
from typing import Any, Final

from edgeship import __version__
from edgeship.bundle.certificate import Certificate, LineageDocument
from edgeship_agent.contract import oci
from edgeship_agent.contract.manifest import BundleManifest, TensorSpec

SPEC_VERSION: Final = "1.6"
#: Makes the serial number from the content, so that the same bundle has the same one.
_NAMESPACE: Final = uuid.UUID("0f5fd3f4-27bb-5f6f-8d8e-8f3a3a4f7c55")
_ROOT: Final = "model"
_SOURCE: Final = "source"


def bill_of_materials(
    manifest: BundleManifest, lineage: LineageDocument, certificates: Sequence[Certificate]
) -> dict[str, Any]:
    """The document, with a serial number that follows from its content and without a date."""
    document: dict[str, Any] = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": SPEC_VERSION,
        "version": 1,
        "metadata": {
            "lifecycles": [{"phase": "build"}],
            "tools": {"components": [{"type": "application", "name": "edgeship", "version": __version__}]},
            "component": _root(manifest, lineage),
        },
        "components": [
            *(_variant(each, manifest, lineage) for each in certificates),
            _source(lineage),
            *(_data(role, used.digest, used.samples) for role, used in sorted(lineage.data.items())),
            *(_tool(name, version) for name, version in sorted(lineage.tools.items())),
        ],
        "dependencies": _dependencies(lineage, certificates),
    }
    serial = uuid.uuid5(_NAMESPACE, oci.digest_of(oci.canonical_json(document)))
    return {**document, "serialNumber": f"urn:uuid:{serial}"}


def _root(manifest: BundleManifest, lineage: LineageDocument) -> dict[str, Any]:
    facts = [{"name": f"edgeship:lineage:{key}", "value": value} for key, value in sorted(lineage.given.items())]
    return {
        "type": "machine-learning-model",
        "bom-ref": _ROOT,
        "name": manifest.name,
        "version": manifest.version,
        **_licenses(lineage),
        **({"properties": facts} if facts else {}),
    }


def _licenses(lineage: LineageDocument) -> dict[str, Any]:
    return {"licenses": [{"expression": lineage.license}]} if lineage.license else {}


def _variant(certificate: Certificate, manifest: BundleManifest, lineage: LineageDocument) -> dict[str, Any]:
    ran = certificate.ran
    return {
        "type": "machine-learning-model",
        "bom-ref": f"variant:{certificate.variant}",
        "name": certificate.variant,
        "version": manifest.version,
        "description": f"{manifest.name} for {ran.runtime} {ran.runtime_version}"
        + (f", quantized {certificate.scheme}" if certificate.scheme else ""),
        **_licenses(lineage),
        "pedigree": {"ancestors": [_file(lineage.source.file, lineage.source.digest)]},
        "components": [_file(file.path, file.digest) for file in certificate.files],
        "modelCard": {
            "modelParameters": {
                "task": manifest.output.kind,
                "datasets": [{"ref": f"data:{role}"} for role in sorted(lineage.data)],
                "inputs": [{"format": _format(each)} for each in manifest.inputs],
                "outputs": [{"format": _format(each)} for each in manifest.outputs],
            },
            "quantitativeAnalysis": {"performanceMetrics": _metrics(certificate)},
        },
    }


def _metrics(certificate: Certificate) -> list[dict[str, Any]]:
    """Numbers are strings in CycloneDX; ``repr`` gives them back bit by bit."""
    metric, slice_name = certificate.metric, f"evaluation data {certificate.evaluation.digest}"
    found = [
        _metric(metric.name, metric.value, slice_name, (metric.low, metric.high)),
        _metric(f"{metric.name} drop", metric.drop, slice_name, (metric.drop_low, metric.drop_high)),
    ]
    if certificate.agreement is not None and metric.name != "agreement":
        share = certificate.agreement
        found.append(_metric("agreement", share.value, slice_name, (share.low, share.high)))
    plain = {
        "relative_rms": certificate.relative_rms,
        "sqnr_db": certificate.sqnr_db,
        "cosine": certificate.cosine,
        "worst_group_rms": certificate.worst_group_rms,
    }
    return found + [_metric(name, value, slice_name, None) for name, value in plain.items() if value is not None]


def _metric(name: str, value: float, slice_name: str, interval: tuple[float, float] | None) -> dict[str, Any]:
    ends = {"lowerBound": repr(interval[0]), "upperBound": repr(interval[1])} if interval else None
    return {"type": name, "value": repr(value), "slice": slice_name, **({"confidenceInterval": ends} if ends else {})}


def _format(spec: TensorSpec) -> str:
    sizes = ", ".join("N" if size < 0 else str(size) for size in spec.shape)
    return f"{spec.name}: {spec.dtype} [{sizes}]"


def _file(name: str, digest: str) -> dict[str, Any]:
    return {"type": "file", "name": name, "hashes": [_hash(digest)]}


def _hash(digest: str) -> dict[str, str]:
    return {"alg": "SHA-256", "content": oci.hex_of(digest)}


def _source(lineage: LineageDocument) -> dict[str, Any]:
    source = lineage.source
    return {
        "type": "machine-learning-model",
        "bom-ref": _SOURCE,
        "name": source.file,
        "description": f"the trained model ({source.format}, {source.size_bytes} bytes)",
        "hashes": [_hash(source.digest)],
    }


def _data(role: str, digest: str, samples: int) -> dict[str, Any]:
    return {
        "type": "data",
        "bom-ref": f"data:{role}",
        "name": f"{role} data",
        "description": f"{samples} samples; the hash is over their contents and labels in order",
        "hashes": [_hash(digest)],
    }


def _tool(name: str, version: str) -> dict[str, Any]:
    """A Python distribution. Source: package-url specification, type ``pypi``; PEP 503 for the name."""
    plain = re.sub(r"[-_.]+", "-", name).lower()
    return {
        "type": "library",
        "bom-ref": f"tool:{name}",
        "name": name,
        "version": version,
        "purl": f"pkg:pypi/{plain}@{version.replace('+', '%2B')}",
    }


def _dependencies(lineage: LineageDocument, certificates: Sequence[Certificate]) -> list[dict[str, Any]]:
    variants = [f"variant:{each.variant}" for each in certificates]
    made_from = [_SOURCE, *(f"data:{role}" for role in sorted(lineage.data)),
                 *(f"tool:{name}" for name in sorted(lineage.tools))]  # fmt: skip
    return [{"ref": _ROOT, "dependsOn": variants}, *({"ref": each, "dependsOn": made_from} for each in variants)]
