"""The header of a LoRA that was made of others: what they agree on is kept, what was done is added."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from schemas.files.documents import parse_json
from trainer.output.metadata import last_name, version

if TYPE_CHECKING:
    from trainer.output.lora_source import LoraSource
    from trainer.output.lora_tools import Tally

HISTORY = "kohyakit_work"  # a JSON list: what was done to the file, oldest first
HASHES = ("sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256", "lora_adapter_metadata", "format")
CONFIG = "kohyakit_config"


def renewed(
    sources: Sequence[LoraSource], did: str, tally: Tally, how: Mapping[str, Any], *, lora: bool
) -> dict[str, str]:
    """Header texts: of several files what all state alike. `lora`: modules of another kind became LoRA."""
    headers = [source.header.metadata for source in sources]
    kept = {
        name: text
        for name, text in headers[0].items()
        if name not in HASHES and all(other.get(name) == text for other in headers[1:])
    }
    kept |= _network(kept, tally, lora=lora) if did != "convert" else {}
    files = [
        {"file": last_name(str(source.path)), "sha256": source.header.metadata.get("sshs_model_hash")}
        for source in sources
    ]
    return {**kept, HISTORY: history(headers[0] if len(headers) == 1 else {}, did, files, how)} | _merged(sources, did)


def history(header: Mapping[str, str], did: str, files: Sequence[Mapping[str, Any]], how: Mapping[str, Any]) -> str:
    """The list of what was done, one entry longer."""
    try:
        before = parse_json(header.get(HISTORY, "[]"))
    except ValueError:
        before = []
    entry = {"did": did, "by": f"kohyakit {version()}", "of": list(files)}
    entry |= {name: value for name, value in how.items() if value is not None}
    return json.dumps([*(before if isinstance(before, list) else []), entry], ensure_ascii=False)


def _merged(sources: Sequence[LoraSource], did: str) -> dict[str, str]:
    names = ", ".join(last_name(str(source.path)) for source in sources)
    return {"modelspec.merged_from": names} if did == "merge" else {}


def _network(kept: Mapping[str, str], tally: Tally, *, lora: bool) -> dict[str, str]:
    """The rank that most linear modules have now; "Dynamic" where they differ, as the reference's own resizing says."""
    if not tally.ranks:
        return {}
    usual = (tally.linear or tally.ranks).most_common(1)[0][0]
    mixed = len(tally.linear) > 1
    found = {"ss_network_dim": "Dynamic" if mixed else str(usual), "ss_network_alpha": "Dynamic"}
    if lora:
        wide = tally.wide.most_common(1)[0][0] if tally.wide else None
        args = {"conv_dim": str(wide)} if wide else {}
        found |= {"ss_network_module": "networks.lora", "ss_network_args": json.dumps(args)}
    try:
        config = parse_json(kept.get(CONFIG, ""))
    except ValueError:
        return found
    if isinstance(config, dict):
        config = {name: value for name, value in config.items() if name not in ("network_dim", "network_alpha")}
        config |= {"network_dim": usual}
        if lora:
            config |= {"network_module": "networks.lora", "network_args": [f"conv_dim={wide}"] if wide else []}
        found[CONFIG] = json.dumps(config, ensure_ascii=False)
    return found
