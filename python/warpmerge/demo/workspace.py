"""The demo's directory. A marker file says that it is the demo's, and names the models that are finished."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import OutputError

MARKER = "warpmerge-demo.json"


class Workspace:
    """A directory that is new, empty, or an earlier demo's. Any other directory is refused and not touched."""

    def __init__(self, root: Path, settings: dict[str, Any]) -> None:
        self.root = root
        self.settings = settings
        earlier = self._claim()
        self.trained: list[str] = earlier["trained"] if earlier.get("settings") == settings else []
        self._remember()

    def model(self, name: str) -> Path:
        return self.root / "models" / name

    def recipe(self, method: str) -> Path:
        return self.root / "recipes" / f"{method}.yml"

    def merged(self, method: str) -> Path:
        return self.root / "merged" / method

    def has(self, name: str) -> bool:
        """Whether an earlier run with the same settings trained this model to its end."""
        return name in self.trained and (self.model(name) / "model.safetensors.index.json").is_file()

    def finished(self, name: str) -> None:
        self.trained = [*(other for other in self.trained if other != name), name]
        self._remember()

    def _claim(self) -> dict[str, Any]:
        if self.root.exists() and not self.root.is_dir():
            raise OutputError(f"{self.root} is a file; the demo needs a directory of its own.")
        self.root.mkdir(parents=True, exist_ok=True)
        if not any(self.root.iterdir()):
            return {}
        try:
            earlier = json.loads((self.root / MARKER).read_text(encoding="utf-8"))
            return {"settings": earlier["settings"], "trained": list(earlier["trained"])}
        except (OSError, ValueError, TypeError, KeyError):
            raise OutputError(
                f"{self.root} is not empty and was not made by the demo (it has no valid {MARKER}); name a new or an "
                "empty directory."
            ) from None

    def _remember(self) -> None:
        state = {"made_by": "warpmerge demo", "settings": self.settings, "trained": self.trained}
        (self.root / MARKER).write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
