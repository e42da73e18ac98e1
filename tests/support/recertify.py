"""An artifact's manifest written anew after a change, so that all its digests agree again."""

from pathlib import Path
from typing import Any

import msgspec

from medserve import store
from medserve.certificate import subject
from medserve.models import Artifact, Certificate


def recertify(folder: Path, **changes: Any) -> Artifact:
    """Digest the files of `folder`, change fields of its manifest, and let each certificate be about the result."""
    artifact = store.read_json(folder / store.ARTIFACT, Artifact)
    artifact = msgspec.structs.replace(artifact, files=store.digests(folder, without=store.ARTIFACT))
    artifact = msgspec.structs.replace(artifact, **changes)

    def renewed(proof: Certificate) -> Certificate:
        made_of = subject(
            artifact.checkpoint, artifact.format, artifact.precision, artifact.golden, proof.runtime, artifact.files
        )
        return msgspec.structs.replace(proof, subject=made_of)

    own, *further = map(renewed, artifact.certificates)
    artifact = msgspec.structs.replace(artifact, certificate=own, further=tuple(further))
    store.write_json(folder / store.ARTIFACT, artifact)
    return artifact
