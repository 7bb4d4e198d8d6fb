"""Journals of an interrupted merge, for --resume. Whatever a journal says, the merge's result is the right one."""

import json
import os

from attack import attack

FILE = "out/.warpmerge-partial/journal"


def ignored(name, make):
    attack("journal", name, FILE, make)


def lines(change):
    """The journal's lines are what `change` makes of them."""

    def make(folder):
        found = (folder / FILE).read_text().splitlines()
        text = "\n".join(change(found)) + "\n"
        (folder / FILE).write_bytes(text.encode(errors="surrogatepass"))

    return make


def records(change):
    """Each record of a finished shard after `change` has worked on it, or what that returns."""

    def changed(line):
        record = json.loads(line)
        made = change(record)
        return json.dumps(record if made is None else made)

    return lines(lambda found: [found[0], *map(changed, found[1:])])


def added(*texts):
    return lines(lambda found: [*found, *texts])


HOSTILE = (None, True, -1, 1.5, 2**70, "", "x" * 10**6, "\0", "\ud800", [], {}, [[]], "../../outside.safetensors", "/")


for key in ("name", "digests"):
    for value in HOSTILE:
        ignored(f"{key} is {value!r:.20}", records(lambda record, k=key, v=value: record.update({k: v})))
ignored("empty", lambda folder: (folder / FILE).write_bytes(b""))
ignored("zero bytes", lambda folder: (folder / FILE).write_bytes(bytes(10_000)))
ignored("not UTF-8", lambda folder: (folder / FILE).write_bytes(b"\xff\n" * 10))
ignored("of another merge", lines(lambda found: ["0" * len(found[0]), *found[1:]]))
ignored("no first line", lines(lambda found: found[1:]))
ignored("first line of 10 MB", lines(lambda found: [found[0] + "0" * 10**7, *found[1:]]))
ignored("cut in a record", lines(lambda found: [*found[:-1], found[-1][:-5]]))
ignored("records that are no JSON", added("{", "nul", "'"))
ignored("empty lines", added("", "", ""))
ignored("deep record", added("[" * 100_000))
ignored("deep record inside", added('{"name":' * 100_000))
ignored("5,000 digits", added('{"name":"x","bytes":' + "9" * 5000 + ',"digests":""}'))
for value in (None, 1, "text", [], {}):
    ignored(f"record is {value!r}", added(json.dumps(value)))
ignored("records twice", lines(lambda found: [*found, *found[1:]]))
ignored("no keys", records(lambda record: {}))
ignored("digits missing", records(lambda r: r.update(digests=r["digests"][:-1])))
ignored("a digest too many", records(lambda r: r.update(digests=r["digests"] + "0" * 16)))
ignored("no digests", records(lambda r: r.update(digests="")))
ignored("digests that are no numbers", records(lambda r: r.update(digests="g" * 16)))
ignored("negative digests", records(lambda r: r.update(digests="-" + r["digests"][1:])))
ignored("digests in another script", records(lambda r: r.update(digests="٤" * 16)))
ignored("digests with underscores", records(lambda r: r.update(digests="1_" * 7 + "11")))
ignored("other digests", records(lambda r: r.update(digests="0" * 16)))
ignored("files outside", records(lambda r: r.update(name="../../outside.safetensors")))
ignored("files of the system", records(lambda r: r.update(name="/etc/passwd")))
ignored("the journal as a shard", records(lambda r: r.update(name="journal")))
ignored("shards that are not of this merge", records(lambda r: r.update(name="model-00009-of-00009.safetensors")))


def directory(folder):
    (folder / FILE).unlink()
    (folder / FILE).mkdir()
    (folder / FILE / "x").write_text("x")


def link(folder):
    """Whoever writes to the journal writes to the input."""
    (folder / FILE).unlink()
    os.symlink(folder / "model" / "config.json", folder / FILE)


def linked_shards(folder):
    """Whoever writes to a staged shard writes to the input."""
    for path in (folder / FILE).parent.glob("*.safetensors"):
        path.unlink()
        path.symlink_to(folder / "model" / path.name)


def swapped_shards(folder):
    first, second = sorted((folder / FILE).parent.glob("*.safetensors"))
    data = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(data)


ignored("journal is a directory", directory)
ignored("journal is a link to an input", link)
ignored("shards are links to the input", linked_shards)
ignored("shards have changed places", swapped_shards)
