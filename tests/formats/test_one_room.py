"""Files are opened in one room: elsewhere nothing calls what reads a file without bounds."""

import ast
from pathlib import Path

import underdraw

SOURCES = Path(underdraw.__file__).parent
ROOM = "formats"
NAMED = {"np.load", "torch.load", "np.fromfile", "np.memmap", "np.genfromtxt", "np.loadtxt"} | {
    "pickle.load", "pickle.loads", "zipfile.ZipFile", "mmap.mmap", "json.load", "safe_open",
    "load_file", "os.fdopen", "shutil.copyfile", "yaml.safe_load",
}  # fmt: skip
METHODS = {"read_text", "read_bytes"}  # of paths, wherever they come from
TRUSTED = {
    # what this process wrote itself a moment ago
    "json.loads(made.to_str())",
    "json.loads(wanted)",
    "json.loads(json.dumps(config))",
    "json.loads(image.info[METADATA])",
    "file.read_bytes()",  # a package
    # libraries that it has loaded
    "(folder / name).read_bytes()",
    # the system's own
    "(SYSTEM / path).read_text(encoding='utf-8', errors='replace')",
    "Path('/proc/self/maps').read_text(encoding='utf-8', errors='replace')",
}


def reads(call: ast.Call) -> bool:
    """Whether a call reads a file, or JSON, past the room."""
    name = ast.unparse(call.func)
    if name in NAMED or (name.split(".")[-1] == "loads" and "json" in name):
        return True
    if isinstance(call.func, ast.Attribute) and call.func.attr in METHODS:
        return not name.startswith("opening.")
    if name != "open":
        return False
    given = [*call.args[1:2], *(word.value for word in call.keywords if word.arg == "mode")]
    mode = given[0].value if given and isinstance(given[0], ast.Constant) else "r"
    return not set(mode) & set("wax")


def test_nothing_reads_files_past_the_room():
    found: dict[str, str] = {}  # what is called -> where
    for path in sorted(SOURCES.rglob("*.py")):
        name = path.relative_to(SOURCES).as_posix()
        if name.startswith(f"{ROOM}/"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and reads(node):
                found[ast.unparse(node)] = name
    assert {call: name for call, name in found.items() if call not in TRUSTED} == {}
    assert found.keys() >= TRUSTED  # no exception that is no longer needed
