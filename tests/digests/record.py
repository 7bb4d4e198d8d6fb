"""Records the digests: python tests/digests/record.py."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from digests.test_digests import DIGESTS, found, groups


def main() -> None:
    lines = {name: value for group in groups() for name, value in found(group).items()}
    DIGESTS.write_text(json.dumps(lines, indent=0, sort_keys=True) + "\n", encoding="utf-8")
    print(f"{len(lines)} digests in {DIGESTS}")


if __name__ == "__main__":
    main()
