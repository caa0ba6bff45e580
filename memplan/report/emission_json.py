"""An emission as JSON: its files with their texts, for programs that write them where they want."""

from __future__ import annotations

import json

from memplan.domain.emission import Emission


def emission_json(format_name: str, emission: Emission) -> str:
    """Return one JSON object. Schema: docs/schemas/memplan.emission.json."""
    files = [{"name": file.name, "media_type": file.media_type, "text": file.text} for file in emission.files]
    answer = {"schema": "memplan.emission/1", "format": format_name, "files": files, "notes": list(emission.notes)}
    return json.dumps(answer, indent=2, ensure_ascii=False) + "\n"
