"""The trained networks that are part of the repository, so that notebooks 91 and 92 work in a fresh clone.

`make keep` copies them, after a whole run, from reports/runs to data/networks, under the same names and in half
precision; `report.load_tensors` and `report.find_folder` take them, in single precision, where there are no others.
data/networks/manifest.json says which runs made them and holds the hash of every source.
"""

import hashlib
import json
import pathlib
import shutil

from dipp_core.files import InputError, read_json, root, write_whole

NAMES = (
    "10_distillation_2d/distilled.safetensors",
    "20_miniature_world/judges.safetensors",
    "21_reference/dit",
    "22_distillation/one_step_dit",
)
LARGEST = 15e6  # bytes of all files together
RUN = ("commit", "uncommitted_changes", "scale", "seed", "params", "params_sha256", "sources_sha256")


def _files(path: pathlib.Path) -> list[pathlib.Path]:
    return sorted(file for file in [path, *path.rglob("*")] if file.is_file())


def _digest(path: pathlib.Path) -> str:
    """Of the names and contents of a folder's files, or of one file."""
    digest = hashlib.sha256()
    for file in _files(path):
        digest.update(f"{file.relative_to(path.parent)}\n".encode() + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:16]


def _halved(file: pathlib.Path) -> bytes:
    """The file, its weights in half precision if it holds any."""
    if file.suffix != ".safetensors":
        return file.read_bytes()
    from safetensors import safe_open
    from safetensors.torch import save

    with safe_open(file, framework="pt") as opened:
        whole, facts = {key: opened.get_tensor(key) for key in opened.keys()}, opened.metadata()  # noqa: SIM118
    half = {key: value.half() if value.is_floating_point() else value for key, value in whole.items()}
    if wide := [key for key in whole if bool(half[key].isinf().any())]:
        raise InputError(f"{file}: {wide[0]} has numbers that half precision does not hold; it cannot be kept")
    return save(half, metadata=facts)


def _runs(stages: set[str]) -> dict[str, dict]:
    """What the published manifests of stages say of the runs."""
    found = {}
    for stage in sorted(stages):
        place = root() / "reports" / "manifests" / f"{stage}.json"
        content = read_json(place, f"run `make repro STAGE={stage}` first")
        found[stage] = {key: content[key] for key in RUN}
    return found


def keep() -> str:
    """Copy the networks and write their manifest; returns a line that says what is kept."""
    runs, folder = root() / "reports" / "runs", root() / "data" / "networks"
    for name in NAMES:
        if not (runs / name).exists():
            raise InputError(f"{runs / name} is missing: run `make repro STAGE={name.split('/')[0]}` first")
    manifest = {"command": "make keep", "runs": _runs({name.split("/")[0] for name in NAMES})}
    content = {file.relative_to(runs): _halved(file) for name in NAMES for file in _files(runs / name)}
    if (size := sum(map(len, content.values()))) > LARGEST:
        raise InputError(f"the networks would take {size / 1e6:.1f} MB of the repository, more than {LARGEST / 1e6:g}")
    shutil.rmtree(folder, ignore_errors=True)
    for place, half in content.items():
        write_whole(folder / place, half)
    manifest["networks"] = {n: {"source_sha256": _digest(runs / n), "sha256": _digest(folder / n)} for n in NAMES}
    write_whole(folder / "manifest.json", json.dumps(manifest, indent=2) + "\n")
    return f"data/networks: {len(NAMES)} networks, {size / 1e6:.1f} MB in half precision"


def changed() -> list[str]:
    """A line for every network that is not, in half precision, what its stage published last, or published here."""
    folder = root() / "data" / "networks"
    manifest, lines = read_json(folder / "manifest.json", "run `make keep`"), []
    now = _runs(set(manifest["runs"]))
    for stage, then in manifest["runs"].items():
        if any(now[stage][key] != then[key] for key in ("scale", "params_sha256", "sources_sha256")):
            lines.append(f"{stage} has run with other code or parameters since its networks were kept: `make keep`")
    for name, told in manifest["networks"].items():
        if _digest(folder / name) != told["sha256"]:
            lines.append(f"data/networks/{name} is not what its manifest says: `make keep`")
        source = root() / "reports" / "runs" / name
        if source.exists() and _digest(source) != told["source_sha256"]:
            lines.append(f"reports/runs/{name} is not what was kept: `make keep`")
    return lines
