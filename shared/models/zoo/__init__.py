"""The small trained models that the cpu scale starts from: a .safetensors file and a card (JSON) each. `make zoo`
trains them again."""

import json
from pathlib import Path

from shared.errors import UserError
from shared.files import sha256_file, write_json

FOLDER = Path(__file__).parent


def card(name: str) -> dict:
    """The card of a zoo model: command, configuration, data version, measured accuracies, sha256. Raises UserError for
    an unknown name."""
    path = FOLDER / f"{name}.json"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in FOLDER.glob("*.json"))) or "none yet (make zoo)"
        raise UserError(f"there is no zoo model named {name!r}; there are: {known}.")
    try:
        content = json.loads(path.read_text())
    except ValueError:
        content = None
    if not isinstance(content, dict) or "sha256" not in content:
        raise UserError(
            f"the zoo card {path} is damaged: restore it with git, or train the model again with `make zoo`."
        )
    return content


def weights(name: str) -> Path:
    """The path of a zoo model's weights, after checking their sha256 against the card. Raises UserError for a missing
    or altered file."""
    path, expected = FOLDER / f"{name}.safetensors", card(name)["sha256"]
    if not path.is_file():
        raise UserError(f"the zoo file {path} is missing: restore it with git, or train it again with `make zoo`.")
    if sha256_file(path) != expected:
        raise UserError(
            f"the zoo file {path} is not the one its card describes (wrong sha256): restore it with git, or train it "
            "again with `make zoo`."
        )
    return path


def write_card(path: Path, **facts) -> None:
    """Write the card of the weights at `path` beside them: `facts`, the sha256 and the size."""
    write_json(
        Path(path).with_suffix(".json"), {**facts, "sha256": sha256_file(path), "bytes": Path(path).stat().st_size}
    )
