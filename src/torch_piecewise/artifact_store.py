"""Artifacts in the store: one entry for each distinct piece and range, shared by every model that has it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from torch_piecewise.artifact import Artifact
from torch_piecewise.cache_key import (
    CpuRequirement,
    Ingredient,
    Key,
    architecture_ingredient,
    compiler_ingredient,
    device_ingredient,
    host_cpu,
    passes_ingredient,
    python_ingredient,
    torch_ingredient,
)
from torch_piecewise.compilers import fingerprint_of
from torch_piecewise.compilers.base import CompileOptions, Compiler
from torch_piecewise.config.ingredients import as_text, stable_name
from torch_piecewise.ranges import Range
from torch_piecewise.store import BlobRef, Draft, Entry, Found, Hit, Miss, OpenStore
from torch_piecewise.store.base import Json

_FILE = "file:"


def artifact_ingredients(compiler: Compiler, options: CompileOptions) -> tuple[Ingredient, ...]:
    """What identifies an artifact beside its piece and range.

    Raises:
        FingerprintError: a pass or a setting has no stable identity.
    """
    settings = tuple(
        Ingredient(name, as_text(value, stable_name))
        for name, value in sorted(options.inductor_config.items())
    )
    return (
        torch_ingredient(),
        python_ingredient(),
        architecture_ingredient(host_cpu()),
        device_ingredient(torch.device("cuda" if torch.cuda.is_available() else "cpu")),
        compiler_ingredient(compiler.name, fingerprint_of(compiler)),
        Ingredient("inductor_compile_config", settings),
        *((Ingredient("partitions", "functions of their own"),) if options.partitions else ()),
        passes_ingredient(options.passes.named() if options.passes is not None else ()),
        *(Ingredient(name, str(value)) for name, value in asdict(options.ambient).items()),
    )


@dataclass(frozen=True)
class ArtifactStore:
    """Keeps and finds artifacts of one compiler under one set of options.

    Attributes:
        store: the open root.
        base: what identifies an artifact beside its piece and range.
        host: what this CPU has; an artifact made for more is a miss.
    """

    store: OpenStore
    base: tuple[Ingredient, ...]
    host: CpuRequirement

    @classmethod
    def of(cls, store: OpenStore, compiler: Compiler, options: CompileOptions) -> ArtifactStore:
        """The artifacts of ``compiler`` under ``options``.

        Raises:
            FingerprintError: a pass or a setting has no stable identity, so that nothing can be kept.
        """
        return cls(store, artifact_ingredients(compiler, options), host_cpu())

    def key(self, fingerprint: str, range: Range) -> str:
        """The key of one artifact."""
        ingredients = (*self.base, Ingredient("piece", fingerprint), Ingredient("range", str(range)))
        return Key.of(ingredients).digest()

    def find(self, fingerprint: str, range: Range) -> Found[Artifact]:
        """The kept artifact, its bytes verified."""
        found = self.store.store.get(self.key(fingerprint, range))
        return found if isinstance(found, Miss) else self._read(found.value, range)

    def _read(self, entry: Entry, range: Range) -> Found[Artifact]:
        needs = CpuRequirement.from_json(entry.meta.get("cpu"))
        unmet = needs.unmet_on(self.host) if needs is not None else ()
        if needs is None or unmet:
            return Miss(f"the artifact was built for another CPU: {'; '.join(map(str, unmet)) or 'unknown'}")
        blobs = self.store.store.blobs
        payload = blobs.read(entry.blobs["payload"]) if "payload" in entry.blobs else Miss("no payload")
        if isinstance(payload, Miss):
            return payload
        files: dict[str, Any] = {}
        for role, ref in entry.blobs.items():
            if role.startswith(_FILE):
                file = blobs.file(ref)
                if isinstance(file, Miss):
                    return file
                files[role.removeprefix(_FILE)] = file.value
        guards, compiler = entry.meta.get("guards"), entry.meta.get("compiler")
        if not isinstance(guards, list) or not isinstance(compiler, str):
            return Miss("the entry does not describe an artifact")
        return Hit(
            Artifact(
                compiler, str(entry.meta.get("piece")), range, payload.value, tuple(map(str, guards)), files
            )
        )

    def keep(self, fingerprint: str, artifact: Artifact) -> None:
        """Keep one artifact; a live one is left out."""
        if not artifact.is_storable:
            return
        blobs: dict[str, bytes | BlobRef] = {"payload": artifact.payload}
        for name, content in artifact.files.items():
            blobs[_FILE + name] = content if isinstance(content, bytes) else content.read_bytes()
        ingredients = (
            *self.base,
            Ingredient("piece", fingerprint),
            Ingredient("range", str(artifact.range)),
        )
        key = Key.of(ingredients)
        meta: dict[str, Json] = {
            "kind": "artifact",
            "compiler": artifact.compiler,
            "piece": artifact.piece,
            "guards": list(artifact.guards),
            "cpu": self.host.as_json(),
        }
        self.store.store.put(key.digest(), Draft(key.as_json(), blobs, meta))

    @contextlib.contextmanager
    def flights(self, units: Sequence[tuple[str, Range]]) -> Iterator[None]:
        """Be the only one, among all processes and threads on this root, that compiles these units.

        Everybody takes the turns in the order of their keys, so nobody waits in a circle.
        """
        with contextlib.ExitStack() as stack:
            for key in sorted(self.key(*unit) for unit in units):
                stack.enter_context(self.store.flights.flight(key))
            yield
