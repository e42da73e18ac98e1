"""Certificates: each artifact against its trainer, and the deployments of a checkpoint against one another."""

from loadtest.report import tables, wording
from loadtest.report.facts import Facts
from loadtest.report.tables import Field, field, text
from loadtest.results.agreement import Agreement
from loadtest.results.row import of_labels
from loadtest.results.tabular import Cell, Mark, Table
from medserve.models import Artifact, Certificate, Checkpoint
from medserve.numbers import ABSENT, number
from medserve.study import Export
from medserve.tables import title

Item = tuple[Export, Artifact | None, Certificate | None]
"""An export with its artifact, and one of that artifact's certificates."""


def certificates(facts: Facts) -> Table | None:
    """One line per artifact of the study, with the reason if it is missing or not valid."""
    items: list[Item] = []
    for export in facts.plan.exports:
        artifact = facts.artifacts.get(export.name)
        proofs = (artifact.certificate, *artifact.further) if artifact else (None,)
        items += [(export, artifact, proof) for proof in proofs]
    group = "Against the trainer's scores"
    certified: list[Field[Certificate]] = [
        field("images", lambda proof: proof.images),
        field("largest |Δp|", _largest, "", group),
        field("limit", lambda proof: proof.limit_abs, "", group),
        field("decisions changed", lambda proof: proof.decisions_changed, "", group),
        field("near ties", lambda proof: proof.near_ties, "", group),
    ]
    scored: list[Field[Certificate]] = [
        field("AUC", lambda proof: Cell(ABSENT if proof.auc is None else f"{proof.auc:.4f}", value=proof.auc)),
    ]
    fields: list[Field[Item]] = [
        text("artifact", _artifact),
        field("size", lambda item: item[0].training.size, "px"),
        *tables.of(_proof, certified),
        field("accuracy", _accuracy, "%"),
        *tables.of(_proof, scored),
        field("opset", lambda item: item[1].opset if item[1] else None),
        text("certificate", _verdict),
    ]

    def remarks(item: Item) -> tuple[str, ...]:
        export, _, proof = item
        if proof is None:
            return (facts.why_not(export.training, export.name) or "not exported yet",)
        return () if proof.valid else (proof.reason or "no reason was given",)

    return tables.table("Certificates", fields, items, remarks=remarks)


def _proof(item: Item) -> Certificate | None:
    return item[2]


def _accuracy(item: Item) -> Cell | None:
    _, artifact, proof = item
    return tables.share(proof.accuracy, of_labels(artifact.checkpoint.task)) if artifact and proof else None


def _artifact(item: Item) -> Cell:
    export, artifact, proof = item
    kind = [title(export.format)]
    if export.framework != export.training.framework:
        kind.append(f"weights of {wording.framework(export.training.framework)}")
    if export.precision != "float32":
        kind.append(export.precision)
    if artifact and proof and proof.runtime != artifact.certificate.runtime:
        kind.append(title(proof.runtime))
    if proof and proof.device == "cuda":
        kind.append("on a GPU")
    mark = Mark(wording.colour(export.framework), "diamond" if export.format == "onnx" else "disc")
    return Cell(wording.framework(export.framework), ", ".join(kind), hint=export.name, mark=mark)


def _largest(proof: Certificate) -> Cell:
    return Cell("not finite" if proof.max_abs is None else number(proof.max_abs), value=proof.max_abs)


def _verdict(item: Item) -> Cell:
    if (proof := item[2]) is None:
        return Cell("none", tone="bad")
    return Cell("valid", tone="good") if proof.valid else Cell("not valid", tone="bad")


def agreements(facts: Facts) -> Table | None:
    """One line per checkpoint: its deployments against one another; null if none has two of them."""
    variants = {training.name: training.variant for training in facts.plan.trainings}
    group = "Of any two deployments"
    fields: list[Field[Agreement]] = [
        text("trained in", lambda known: tables.framework(_checkpoint(known).framework, hint=known.checkpoint)),
        text("recipe", lambda known: variants.get(known.checkpoint) or ABSENT, shown=len(facts.study.variants) > 1),
        field("size", lambda known: _checkpoint(known).size, "px"),
        field("seed", lambda known: _checkpoint(known).recipe.seed),
        field("deployments", lambda known: len(known.served)),
        field("largest |Δp|", lambda known: _largest(known.pairs[known.widest]), "", group),
        text("between", _between, group),
        field("decisions differ", _differing, "", group),
        field("AUC", _aucs, "lowest to highest"),
        text("agree", lambda known: Cell("yes", tone="good") if known.holds else Cell("no", tone="bad")),
    ]
    return tables.table("Agreement of deployments", fields, facts.agreements)


def _checkpoint(agreement: Agreement) -> Checkpoint:
    return next(artifact for artifact, _ in agreement.served.values()).checkpoint


def _differing(agreement: Agreement) -> int:
    return max(proof.decisions_changed for proof in agreement.pairs.values())


def _between(agreement: Agreement) -> str:
    return " and ".join(_served(agreement.served[served][0], served[1]) for served in agreement.widest)


def _aucs(agreement: Agreement) -> Cell:
    found = [proof.auc for _, proof in agreement.served.values() if proof.auc is not None]
    return Cell(f"{min(found):.6f} to {max(found):.6f}" if found else ABSENT)


def _served(artifact: Artifact, runtime: str) -> str:
    framework = wording.framework(artifact.transplanted or artifact.checkpoint.framework)
    by = "" if runtime == artifact.certificate.runtime else f" by {title(runtime)}"
    return f"{framework} {title(artifact.format)}{by}"
