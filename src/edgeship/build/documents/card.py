"""The model card: Markdown with the front matter that model hubs read. Figures with intervals; nothing is made up.

What a build cannot know (what the model is for, who may use it, what it was trained on) is the user's to say with
``--card FILE``; where it was not said, the card says so.

Source: Hugging Face hub documentation, "Model cards": metadata ``license``, ``base_model``, ``base_model_relation``,
``model-index``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct, field

from edgeship.build.markdown import code, plain, table
from edgeship.bundle.certificate import BOM_FILE, CERTIFICATE_FILE, LINEAGE_FILE, Certificate, LineageDocument
from edgeship_agent.contract.errors import ConfigError
from edgeship_agent.contract.manifest import BundleManifest, Feature

MAX_CARD_BYTES: Final = 200_000
_FENCE: Final = "---"
#: Front matter that the build itself states; a card that states it too could contradict it.
_OURS: Final = ("base_model_relation", "model-index")
#: SPDX ids that model hubs know under their lower-case name; another licence is ``other`` with its own name.
_HUB_LICENSES: Final = frozenset({
    "afl-3.0", "agpl-3.0", "apache-2.0", "artistic-2.0", "bsl-1.0", "bsd-2-clause", "bsd-3-clause",
    "bsd-3-clause-clear", "cc0-1.0", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cc-by-nc-2.0",
    "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0",
    "cc-by-nc-sa-4.0", "cc-by-nd-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "ecl-2.0", "epl-1.0", "epl-2.0", "eupl-1.1",
    "eupl-1.2", "gpl-2.0", "gpl-3.0", "isc", "lgpl-2.1", "lgpl-3.0", "lppl-1.3c", "mit", "mpl-2.0", "ms-pl", "ncsa",
    "odbl", "ofl-1.1", "osl-3.0", "pddl", "postgresql", "unlicense", "wtfpl", "zlib",
})  # fmt: skip
#: Names of metrics that model hubs group results by.
_HUB_METRICS: Final = {"top1": "accuracy"}
_MOST_FEATURES: Final = 40


class CardAddition(Struct, frozen=True, kw_only=True):
    """What the user's ``--card FILE`` says.

    Attributes:
        front: its front matter.
        text: its Markdown, put below the build's own figures.
    """

    front: dict[str, Any] = field(default_factory=dict)
    text: str = ""


def read_card(path: Path | None) -> CardAddition:
    """Read ``--card FILE``: Markdown in UTF-8, with or without front matter.

    Raises:
        ConfigError: it cannot be read, is too long, or states in its front matter what the build states.
    """
    if path is None:
        return CardAddition()
    try:
        data = path.read_bytes()
        text = data.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("the card cannot be read", file=path, expected="Markdown in UTF-8", got=error,
                          next_step="--card FILE.md") from error  # fmt: skip
    if len(data) > MAX_CARD_BYTES:
        raise ConfigError("the card is too long", file=path, expected=f"at most {MAX_CARD_BYTES} bytes", got=len(data),
                          next_step="link to the long parts")  # fmt: skip
    front, body = _split(text, path)
    taken = [key for key in _OURS if key in front]
    if taken:
        raise ConfigError("the build states this itself, from what it measured", file=path, key=", ".join(taken),
                          next_step="take it out of the card's front matter")  # fmt: skip
    return CardAddition(front=front, text=body.strip())


def _split(text: str, path: Path) -> tuple[dict[str, Any], str]:
    """Front matter and body."""
    import yaml

    lines = text.replace("\r\n", "\n").split("\n")
    if lines[0].strip() != _FENCE:
        return {}, text.replace("\r\n", "\n")
    ends = [number for number, line in enumerate(lines[1:], 1) if line.strip() == _FENCE]
    if not ends:
        raise ConfigError("the front matter does not end", file=path, expected=f"a line with {_FENCE}",
                          next_step="close it, or take it out")  # fmt: skip
    try:
        front = yaml.safe_load("\n".join(lines[1 : ends[0]])) or {}
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError("the front matter is not YAML", file=path, got=str(error).splitlines()[0],
                          next_step="mend it, or take it out") from error  # fmt: skip
    try:
        front = msgspec.json.decode(msgspec.json.encode(front))  # dates become text, as they are written anyway
    except (msgspec.MsgspecError, TypeError, ValueError, RecursionError) as error:
        raise ConfigError("the front matter holds something that is no plain value", file=path,
                          got=str(error).splitlines()[0], next_step="mend it, or take it out") from error  # fmt: skip
    if not isinstance(front, dict) or not all(isinstance(key, str) for key in front):
        raise ConfigError("the front matter is not a mapping", file=path, expected="key: value",
                          next_step="mend it, or take it out")  # fmt: skip
    return front, "\n".join(lines[ends[0] + 1 :])


def check_one_license(expression: str, addition: CardAddition) -> None:
    """Refuse a card whose front matter names another licence than ``--license``.

    Raises:
        ConfigError: it does.
    """
    said = addition.front.get("license")
    if not expression or said is None:
        return
    stated = _license(expression)["license"]
    if said != stated:
        raise ConfigError("two different licences", key="license", expected=f"{stated} (from --license)",
                          got=f"{said} (from --card)", next_step="say it once")  # fmt: skip


def model_card(
    manifest: BundleManifest, lineage: LineageDocument, certificates: Sequence[Certificate], addition: CardAddition
) -> str:
    """The card as text.

    Args:
        manifest: of the bundle.
        lineage: of the bundle.
        certificates: one per variant, in the manifest's order.
        addition: what the user says.
    """
    import yaml

    front = _front_matter(manifest, lineage, certificates, addition)
    dumped = yaml.safe_dump(front, sort_keys=False, allow_unicode=True, width=1000)
    parts = [
        f"{_FENCE}\n{dumped}{_FENCE}",
        f"# {plain(manifest.name)} {plain(manifest.version)}",
        _opening(manifest, lineage),
        _variants(certificates),
        _proof(certificates),
        _inputs(manifest),
        _outputs(manifest),
        _origin(lineage),
        _said(addition),
    ]
    return "\n\n".join(parts) + "\n"


def percent_interval(value: float, low: float, high: float) -> str:
    """A share with its 95 % interval.

    >>> percent_interval(0.9, 0.88, 0.92)
    '90.00 % (95 %: 88.00 to 92.00)'
    """
    return f"{100 * value:.2f} % (95 %: {100 * low:.2f} to {100 * high:.2f})"


def _front_matter(
    manifest: BundleManifest, lineage: LineageDocument, certificates: Sequence[Certificate], addition: CardAddition
) -> dict[str, Any]:
    front = dict(addition.front)
    if lineage.license:
        front.update(_license(lineage.license))
    if "base_model" in lineage.given:
        front["base_model"] = lineage.given["base_model"]
    if any(each.scheme for each in certificates):
        front["base_model_relation"] = "quantized"
    tags = front.get("tags")
    ours = ["edgeship", *sorted({each.ran.runtime for each in certificates})]
    front["tags"] = list(dict.fromkeys([*(tags if isinstance(tags, list) else []), *ours]))
    front["model-index"] = [{"name": manifest.name, "results": [_result(each) for each in certificates]}]
    return front


def _license(expression: str) -> dict[str, str]:
    known = expression.lower() if expression.lower() in _HUB_LICENSES else expression.lower().removesuffix("-only")
    return {"license": known} if known in _HUB_LICENSES else {"license": "other", "license_name": expression}


def _result(certificate: Certificate) -> dict[str, Any]:
    metric = certificate.metric
    interval = f"95 % {metric.low:.6f} to {metric.high:.6f}, n = {metric.n}"
    return {
        "task": {"type": "other"},
        "dataset": {"type": "private", "name": f"evaluation data {certificate.evaluation.digest}"},
        "metrics": [
            {
                "type": _HUB_METRICS.get(metric.name, metric.name),
                "value": metric.value,
                "name": f"{metric.name}, {certificate.variant} ({interval})",
            }
        ],
    }


def _opening(manifest: BundleManifest, lineage: LineageDocument) -> str:
    targets = ", ".join(dict.fromkeys(each.target for each in manifest.variants))
    licence = f"Licence: {plain(lineage.license)}." if lineage.license else "Licence: not stated."
    return (
        f"Built by Edgeship from {code(lineage.source.file)} for {plain(targets)}. {licence} Every figure below was "
        "measured on the artifact itself, in its own runtime; `edgeship verify` recomputes it from the bundle."
    )


def _variants(certificates: Sequence[Certificate]) -> str:
    rows = []
    for each in certificates:
        metric, size_bytes = each.metric, sum(file.size_bytes for file in each.files)
        rows.append([
            plain(each.variant), plain(each.scheme or "not quantized"), f"{size_bytes:,}",
            _figure(each, metric.value, metric.low, metric.high), _drop(each), _number(each.relative_rms),
        ])  # fmt: skip
    name = certificates[0].metric.name if certificates else "metric"
    header = ["variant", "quantization", "size in bytes", plain(name), "drop against the source", "relative RMS"]
    n = certificates[0].metric.n if certificates else 0
    return (
        "## Variants\n\n" + table(header, rows) + f"\n\nOn {n:,} evaluation samples; a positive drop is worse than "
        "the source. Latency is not stated here, since it depends on the device: see the build's report."
    )


def _figure(certificate: Certificate, value: float, low: float, high: float) -> str:
    if certificate.unit == "fraction":
        return percent_interval(value, low, high)
    unit = f" {certificate.unit}" if certificate.unit else ""
    return f"{value:.5g}{unit} (95 %: {low:.5g} to {high:.5g})"


def _drop(certificate: Certificate) -> str:
    metric = certificate.metric
    if certificate.drop_unit == "fraction":
        return (f"{100 * metric.drop:+.2f} points (95 %: {100 * metric.drop_low:+.2f} to "
                f"{100 * metric.drop_high:+.2f})")  # fmt: skip
    unit = f" {certificate.drop_unit}" if certificate.drop_unit else ""
    return f"{metric.drop:+.5g}{unit} (95 %: {metric.drop_low:+.5g} to {metric.drop_high:+.5g})"


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.4g}"


def _proof(certificates: Sequence[Certificate]) -> str:
    rows = []
    for each in certificates:
        share, ran = each.agreement, each.ran
        agreement = percent_interval(share.value, share.low, share.high) if share else "not a classifier"
        rows.append([
            plain(each.variant), f"{plain(ran.runtime)} {plain(ran.runtime_version)}",
            f"{plain(ran.isa)}, {plain(ran.arithmetic)}", _number(each.sqnr_db), _number(each.cosine), agreement,
        ])  # fmt: skip
    header = ["variant", "runtime", "ran on", "SQNR in dB", "cosine", "same class as the source"]
    if any(_has_groups(each) for each in certificates):
        header.append("relative RMS of the worst channel group")
        for row, each in zip(rows, certificates, strict=True):
            row.append(_number(each.worst_group_rms) if _has_groups(each) else "")
    closing = f"The same in full, for machines: `{CERTIFICATE_FILE}`, `{BOM_FILE}` and `{LINEAGE_FILE}` in the bundle."
    return f"## Closeness to the source\n\n{table(header, rows)}\n\n{closing}"


def _has_groups(certificate: Certificate) -> bool:
    """Whether channel groups of its first output were judged."""
    return any(rule.id == "group_rms" for rule in certificate.rules)


def _inputs(manifest: BundleManifest) -> str:
    rows = [
        [plain(tensor), plain(each.name), plain(each.unit), _range(each), plain(each.meaning or _undocumented(each))]
        for tensor, features in sorted(manifest.input_schema.items())
        for each in features[:_MOST_FEATURES]
    ]
    return "## Inputs\n\n" + table(["tensor", "feature", "unit", "range", "meaning"], rows)


def _undocumented(feature: Feature) -> str:
    return "" if feature.documented else "not documented; the range is what the calibration data showed"


def _range(feature: Feature) -> str:
    return "none" if feature.low is None or feature.high is None else f"{feature.low:g} to {feature.high:g}"


def _outputs(manifest: BundleManifest) -> str:
    output = manifest.output
    lines = [f"- kind: {plain(output.kind)}"]
    if output.labels:
        lines.append("- labels, in order: " + ", ".join(plain(label) for label in output.labels))
    lines += [f"- {name}: {plain(text)}" for name, text in (("activation", output.activation), ("unit", output.units))
              if text and text != "none"]  # fmt: skip
    return "## Outputs\n\n" + "\n".join(lines)


def _origin(lineage: LineageDocument) -> str:
    source = lineage.source
    rows = [["source", f"{plain(source.file)} ({plain(source.format)})", f"`{source.digest}`"]]
    rows += [[f"{plain(role)} data", f"{used.samples:,} samples", f"`{used.digest}`"]
             for role, used in sorted(lineage.data.items())]  # fmt: skip
    lines = [f"- {plain(key)}: {plain(value)}" for key, value in sorted(lineage.given.items())]
    tools = "Tools: " + ", ".join(f"{plain(name)} {plain(version)}" for name, version in sorted(lineage.tools.items()))
    given = "\n\nStated by the author of the build:\n\n" + "\n".join(lines) if lines else ""
    return f"## Origin\n\n{table(['what', '', 'digest'], rows)}\n\n{tools}.{given}"


def _said(addition: CardAddition) -> str:
    if addition.text:
        return addition.text
    return (
        "## Intended use\n\nNot stated. The author of the build gave no `--card FILE` that says what the model is for, "
        "what it was trained on and where it must not be used."
    )
