"""Recipes that execute, grow, or use what YAML offers and no recipe needs."""

from attack import attack

FILE = "recipe.yml"


def good(folder, more=""):
    return f"merge_method: linear\nmodels: [{folder}/model]\nparameters: {{weight: 1}}\n{more}"


def refused(name, text, *texts):
    attack("recipe", name, FILE, text, *texts)


def with_value(name, value, *texts):
    """A good recipe whose weight is this YAML. Without texts, it is a weight that can be used."""

    def make(folder):
        text = good(folder).replace("weight: 1", f"weight: {value}")
        (folder / FILE).write_bytes(text.encode(errors="surrogatepass"))

    attack("recipe", name, FILE, make, *texts)


def bomb(levels=40, merge=False):
    """Every level names the one before it twice: 2**levels of them."""
    made = ["b0: &b0 {weight: 1}" if merge else "b0: &b0 [1, 1]"]
    for i in range(1, levels):
        made.append(f"b{i}: &b{i} {{<<: [*b{i - 1}, *b{i - 1}]}}" if merge else f"b{i}: &b{i} [*b{i - 1}, *b{i - 1}]")
    return "\n".join(made) + "\n"


INVALID = "not valid YAML"
KEYS = "a recipe must be a mapping"

refused("empty", "", KEYS)
refused("a list", "[1]", KEYS)
refused("a text", "merge", KEYS)
refused("not UTF-8", b"merge_method: \xff", "not a text file")
refused("UTF-16", "merge_method: linear".encode("utf-16"), "not a text file")
refused("zero bytes", bytes(100), INVALID)
refused("control characters", "merge_method: \x1b[2J", INVALID)
refused("several documents", "a: 1\n---\nb: 2\n", "document 1")
refused("deep list", "[" * 100_000, "nested too deeply")
refused("deep mapping", "{a: " * 100_000, "nested too deeply")
refused("deep indentation", "".join(" " * i + f"k{i}:\n" for i in range(3000)), "nested too deeply")
refused("mapping that contains itself", "&a {merge_method: *a}", "contains itself")
refused("list that contains itself", "&a [*a]", "contains itself")
refused("alias of nothing", "a: *b", INVALID)
refused("key twice", "merge_method: linear\nmerge_method: ties\n", "given twice")
refused("key that is a list", "? [a]\n: 1\n", INVALID)
refused("key that is a mapping", "? {a: 1}\n: 1\n", INVALID)
refused("keys of other types", "1: 2\nnull: 3\n", "key 1")
refused("key of 1 MB", "k" * 10**6 + ": 1\n", "")
refused("aliases that grow", bomb() + "merge_method: *b39\n", "values")
refused("merged keys that grow", bomb(merge=True) + "merge_method: *b39\n", "values")

for tag in ("python/object/apply:os.system", "python/name:os.system", "python/module:os", "python/tuple"):
    refused(f"!!{tag}", f"merge_method: !!{tag} ['touch /tmp/owned']\n", INVALID)
refused("a local tag", "merge_method: !own x\n", INVALID)
for tag in (
    "int",
    "float",
    "bool",
    "null",
    "timestamp",
    "binary",
    "omap",
    "pairs",
    "set",
    "map",
    "seq",
    "str",
    "merge",
):
    for place, value in {"nothing": "''", "a word": "word", "a list": "[a, b]", "a mapping": "{a: b}"}.items():
        refused(f"!!{tag} of {place}", f"merge_method: !!{tag} {value}\n", "")

with_value("date", "2001-01-01", "weight")
with_value("date that there is not", "2001-99-99", "weight")
with_value("time", "2001-12-14t21:59:43.10-05:00", "weight")
with_value("time zone that there is not", "2001-12-14t21:59:43.10-99:00", "")
with_value("bytes", "!!binary AAAA", "binary")
with_value("not a number", ".nan", "weight")
with_value("infinity", ".inf", "weight")
with_value("number beyond float64", "1e999", "weight")
with_value("5,000 digits", "9" * 5000, INVALID)
with_value("integer beyond float64", "9" * 400, "weight")
with_value("hexadecimal beyond float64", "0x" + "f" * 5000, "digits")
with_value("binary beyond float64", "0b" + "1" * 5000, "digits")
with_value("sexagesimal beyond float64", "1" + ":59" * 400, "digits")
with_value("octal that is none", "0o9", "weight")
with_value("boolean", "yes", "weight")
with_value("text of 1 MB", "w" * 10**6, "weight")
with_value("deep weights", "[" * 200 + "1" + "]" * 200, "nested too deeply")
with_value("surrogate", "\ud800", "not a text file")
with_value("weights that contain themselves", "&a [*a]", "weight")
with_value("filters that contain themselves", "&a {filter: x, value: *a}", "contains itself")
with_value("filters that are no patterns", "[{filter: '(', value: 1}, {filter: '(a+)+$', value: 1}, {value: 2}]")
with_value("hexadecimal", "0x1")
with_value("exponent", "1e-5")
with_value("underscores", "1_0")
