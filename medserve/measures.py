"""What the `[[measure]]` lines and the objective of a study mean: load profiles. Pure functions."""

from contextlib import suppress

import msgspec

from medserve import tables
from medserve.errors import BadInput
from medserve.spec import LoadProfile
from medserve.study import Measure, Objective, Study
from medserve.tables import DEFAULTS, find_profile, profile_name

DURATIONS = ("seconds", "warmup_seconds", "requests")
TERMS = ("rate", "load", "arrivals", "burst", "users", "gap_seconds", "batch", "payload")
CAPACITY_USERS = 8
"""Users back to back who keep a server busy: while it computes for one, the requests of the others wait for it."""
LOOPS = {
    "in-process": (),
    "closed-loop": ("users", "gap_seconds", "payload"),
    "open-loop": ("rate", "load", "arrivals", "burst", "payload"),
}
"""The terms that a mode has, besides the batch."""


def profiles_of(measure: Measure) -> tuple[LoadProfile, ...]:
    """The profiles that a line of a study means. Raises BadInput for terms that do not go together."""
    if bool(measure.profiles) == (measure.mode is not None):
        raise BadInput("give either 'profiles' or a 'mode'")
    bases = [find_profile(name) for name in measure.profiles] if measure.mode is None else [DEFAULTS[measure.mode]]
    terms, durations = (
        {field: value for field in fields if (value := getattr(measure, field)) is not None}
        for fields in (TERMS, DURATIONS)
    )
    found = []
    for base in bases:
        if foreign := [term for term in terms if term not in ("batch", *LOOPS[base.mode])]:
            raise BadInput(f"mode {base.mode} has no '{foreign[0]}'; it has 'batch', {str(LOOPS[base.mode])[1:-1]}")
        made = msgspec.structs.replace(base, **terms, **durations)
        if made.mode == "open-loop" and ((made.rate is None) == (made.load is None) or made.arrivals == "trace"):
            raise BadInput("an open loop needs a 'rate' or a 'load', and its arrivals are constant, poisson or bursts")
        named = terms or measure.mode is not None
        found.append(msgspec.structs.replace(made, name=profile_name(made)) if named else made)
    return tuple(found)


def capacity_profile(study: Study, load: LoadProfile) -> LoadProfile:
    """The closed loop that tells what a load is a share of: as long, of the same requests, of users who never idle it.

    A server that batches needs two batches' worth of them for each of its instances: one that it computes, and one that
    waits.
    """
    users = max(CAPACITY_USERS, 2 * max(study.batch_images) * max(study.instances))
    durations = {name: getattr(load, name) for name in DURATIONS}
    return tables.profile("closed-loop", users=users, batch=load.batch, payload=load.payload, **durations)


def objective_profile(objective: Objective) -> LoadProfile:
    """The open loop that an objective is judged by."""
    return tables.profile("open-loop", rate=objective.rate, arrivals=objective.arrivals)


def batches(study: Study) -> tuple[int, ...]:
    """1, 32 and every batch that a study measures or puts together, in ascending order."""
    found = {1, 32, *study.batch_images}
    for measure in study.measure:
        # `plan` says what is wrong with it.
        with suppress(BadInput):
            found |= {profile.batch for profile in profiles_of(measure)}
    return tuple(sorted(found))


def check(study: Study, measure: Measure) -> None:
    """Raise BadInput for a line that its study cannot follow."""
    for profile in profiles_of(measure):
        if profile.batch > max(study.batch_sizes, default=0):
            raise BadInput(
                f"profile {profile.name} sends batches of {profile.batch}; add {profile.batch} to 'batch_sizes'"
            )
    for size in measure.sizes:
        sizes = dict.fromkeys((*study.sizes, *(model.size for model in study.models)))
        if size not in sizes:
            raise BadInput(f"{size} px is not among the study's sizes; there is: {', '.join(map(str, sizes))}")


def profiles(study: Study, size: int) -> tuple[LoadProfile, ...]:
    """All profiles that a study measures at a size, without repetition."""
    lines = [profiles_of(measure) for measure in study.measure if not measure.sizes or size in measure.sizes]
    found = {profile.name: profile for line in lines for profile in line}
    if study.objective is not None and study.objective.rate is not None:
        asked = objective_profile(study.objective)
        found.setdefault(asked.name, asked)
    for name, load in [(name, profile) for name, profile in found.items() if profile.load is not None]:
        capacity = capacity_profile(study, load)
        found.setdefault(capacity.name, capacity)
        found[name] = msgspec.structs.replace(load, capacity=capacity.name)
    # What is measured soundly comes first, and a capacity before its shares.
    return tuple(sorted(found.values(), key=lambda profile: (profile.mistake is not None, profile.load is not None)))
