"""Certificates: each artifact against its trainer, and the deployments of a checkpoint against one another."""

from loadtest.report import wording
from loadtest.report.facts import Facts
from loadtest.results.tabular import Cell, Column, Line, Mark, Table
from medserve.numbers import ABSENT, number
from medserve.spec import Artifact, Certificate


def certificates(facts: Facts) -> Table:
    """One line per artifact of the study, with the reason if it is missing or not valid."""
    group = "Against the trainer's scores"
    columns = (
        Column("artifact", numeric=False),
        Column("size", "px"),
        Column("images"),
        Column("largest |Δp|", "", group),
        Column("limit", "", group),
        Column("decisions changed", "", group),
        Column("near ties", "", group),
        Column("accuracy", "%"),
        Column("AUC"),
        Column("opset"),
        Column("certificate", numeric=False),
    )
    lines = []
    for export in facts.plan.exports:
        artifact = facts.artifacts.get(export.name)
        training = export.training
        mark = Mark(wording.colour(export.framework), "diamond" if export.format == "onnx" else "disc")
        name, kind = wording.framework(export.framework), wording.title(export.format)
        if export.framework != training.framework:
            kind += f", weights of {wording.framework(training.framework)}"
        if export.precision != "float32":
            kind += f", {export.precision}"
        first = [Cell(name, kind, hint=export.name, mark=mark)]
        first.append(Cell(str(training.size), value=training.size))
        if artifact is None:
            empty = [Cell(ABSENT, tone="muted")] * 8
            reason = facts.why_not(training, export.name) or "not exported yet"
            lines.append(Line((*first, *empty, Cell("none", tone="bad")), (reason,)))
            continue
        for proof in (artifact.certificate, *artifact.further):
            remarks = () if proof.valid else (proof.reason or "no reason was given",)
            by = "" if proof.runtime == artifact.certificate.runtime else f", {wording.title(proof.runtime)}"
            named = Cell(name, kind + by, hint=export.name, mark=mark)
            lines.append(Line((named, *first[1:], *_certified(artifact, proof)), remarks))
    return Table("Certificates", columns, tuple(lines))


def _certified(artifact: Artifact, certificate: Certificate) -> list[Cell]:
    return [
        Cell(f"{certificate.images:,}", value=certificate.images),
        Cell("not finite" if certificate.max_abs is None else number(certificate.max_abs), value=certificate.max_abs),
        Cell(number(certificate.limit_abs), value=certificate.limit_abs),
        Cell(str(certificate.decisions_changed), value=certificate.decisions_changed),
        Cell(str(certificate.near_ties), value=certificate.near_ties),
        Cell(f"{certificate.accuracy * 100:.2f}", value=certificate.accuracy),
        Cell(ABSENT if certificate.auc is None else f"{certificate.auc:.4f}", value=certificate.auc),
        Cell(ABSENT if artifact.opset is None else str(artifact.opset), value=artifact.opset),
        Cell("valid", tone="good") if certificate.valid else Cell("not valid", tone="bad"),
    ]


def agreements(facts: Facts) -> Table | None:
    """One line per checkpoint: its deployments against one another; null if none has two of them."""
    group = "Of any two deployments"
    columns = (
        Column("trained in", numeric=False),
        *[Column("recipe", numeric=False)] * (len(facts.study.variants) > 1),
        Column("size", "px"),
        Column("seed"),
        Column("deployments"),
        Column("largest |Δp|", "", group),
        Column("between", "", group, numeric=False),
        Column("decisions differ", "", group),
        Column("AUC", "lowest to highest"),
        Column("agree", numeric=False),
    )
    variants = {training.name: training.variant for training in facts.plan.trainings}
    lines = []
    for agreement in facts.agreements:
        checkpoint = next(artifact for artifact, _ in agreement.served.values()).checkpoint
        worst = agreement.pairs[agreement.widest]
        aucs = [proof.auc for _, proof in agreement.served.values() if proof.auc is not None]
        framework = wording.framework(checkpoint.framework)
        cells = [Cell(framework, hint=agreement.checkpoint, mark=Mark(wording.colour(checkpoint.framework)))]
        cells += [Cell(variants.get(agreement.checkpoint) or ABSENT)] * (len(facts.study.variants) > 1)
        cells += [Cell(str(value), value=value) for value in (checkpoint.size, checkpoint.recipe.seed)]
        cells.append(Cell(str(len(agreement.served)), value=len(agreement.served)))
        cells.append(Cell("not finite" if worst.max_abs is None else number(worst.max_abs), value=worst.max_abs))
        cells.append(Cell(" and ".join(_served(agreement.served[served][0], served[1]) for served in agreement.widest)))
        changed = max(proof.decisions_changed for proof in agreement.pairs.values())
        cells.append(Cell(str(changed), value=changed))
        cells.append(Cell(f"{min(aucs):.6f} to {max(aucs):.6f}" if aucs else ABSENT))
        cells.append(Cell("yes", tone="good") if agreement.holds else Cell("no", tone="bad"))
        lines.append(Line(tuple(cells)))
    caption = (
        "Every deployment of a checkpoint against every other, on the whole test split: probabilities differ by at "
        "most 1e-4, and no decision differs where the two best classes are more than 2e-4 apart."
    )
    return Table("Agreement of deployments", columns, tuple(lines), caption) if lines else None


def _served(artifact: Artifact, runtime: str) -> str:
    framework = wording.framework(artifact.transplanted or artifact.checkpoint.framework)
    by = "" if runtime == artifact.certificate.runtime else f" by {wording.title(runtime)}"
    return f"{framework} {wording.title(artifact.format)}{by}"
