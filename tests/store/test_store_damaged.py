"""Damaged, foreign and hostile files: one StoreError, nothing half-loaded, nothing executed."""

import copy
import errno
import io
import json
import os
import shutil

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from stored_models import build

from secateur.errors import SecateurError, StoreError
from secateur.graph.forward import named_tensors
from secateur.plan import Plan
from secateur.plan.encode import digest
from secateur.plan.folder import sha256_of
from secateur.plan.store import load, save

WEIGHTS = "model.safetensors"


def bits(model):
    tensors = {n: (id(t), t.detach().clone()) for n, t in named_tensors(model).items()}
    numbers = {
        (path, name): value
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, int | float | tuple)
    }
    return tensors, numbers, [type(m) for m in model.modules()]


def same_bits(a, b):
    return (
        a[1:] == b[1:]
        and a[0].keys() == b[0].keys()
        and all(i == b[0][n][0] and torch.equal(t, b[0][n][1]) for n, (i, t) in a[0].items())
    )


def refused(path, name="branches", match=None):
    """Loading fails with a StoreError that names the file, and leaves the model given as it was."""
    model = build(name, 1)
    before = bits(model)
    with pytest.raises(StoreError, match=match) as error:
        load(model, path)
    assert str(path) in str(error.value)
    assert same_bits(before, bits(model))
    return str(error.value)


def rewrite(path, change, *, sign=True):
    """Change the data of plan.json; with a right digest again unless told otherwise."""
    file = path / "plan.json"
    data = json.loads(file.read_text())
    change(data)
    if sign:
        data.pop("sha256", None)
        data["sha256"] = digest(data)
    file.write_text(json.dumps(data))


def reweigh(path, change):
    """Change the tensors, and everything in plan.json that says which they are."""
    tensors = load_file(path / WEIGHTS)
    change(tensors)
    save_file(tensors, path / WEIGHTS, metadata={"format": "pt"})
    entry = {"sha256": sha256_of(path / WEIGHTS), "bytes": (path / WEIGHTS).stat().st_size}
    rewrite(path, lambda d: d["files"][WEIGHTS].update(entry))


def test_a_truncated_weights_file_is_refused(folder):
    path = folder("branches")
    whole = (path / WEIGHTS).read_bytes()
    for n in (0, 7, 100, len(whole) - 1):
        (path / WEIGHTS).write_bytes(whole[:n])
        assert "truncated" in refused(path)


def test_a_weights_file_of_the_right_size_and_other_contents_is_refused(folder):
    path = folder("branches")
    data = bytearray((path / WEIGHTS).read_bytes())
    data[-5] ^= 1
    (path / WEIGHTS).write_bytes(bytes(data))
    refused(path, match="sha256 differs")


@pytest.mark.parametrize("name", ["plan.json", WEIGHTS, "buffers.safetensors"])
def test_a_missing_file_is_named(folder, name):
    path = folder("branches")
    (path / name).unlink()
    assert name in refused(path, match="missing")


def test_a_folder_that_is_none_is_named(tmp_path):
    refused(tmp_path / "nothing", match="nothing does not exist")
    (tmp_path / "file").write_text("x")
    refused(tmp_path / "file", match="is not a folder")


def test_another_architecture_is_refused_by_the_first_tensor_that_differs(folder):
    message = refused(folder("plain"), "branches", match="made for another architecture")
    assert "it lacks a.weight" in message
    refused(folder("plain"), "resnet18", match="made for another architecture")


def test_loading_onto_the_pruned_model_is_refused(folder, pruned):
    _, _, small = pruned("plain")
    with pytest.raises(StoreError, match="made for another architecture"):
        load(copy.deepcopy(small), folder("plain"))


def test_what_is_not_a_model_is_refused(folder):
    with pytest.raises(StoreError, match="needs a module or what builds one"):
        load(dict, folder("plain"))


def test_a_plan_alone_is_no_saved_model(tmp_path, pruned):
    pruned("plain")[1].save(tmp_path / "plan.json")
    refused(tmp_path, "plain", match="a plan alone, without weights")


def _set(*path):
    *way, last, value = path

    def change(data):
        for key in way:
            data = data[key]
        data[last] = value

    return change


HOSTILE = {
    "a newer version": (_set("version", 3), "upgrade secateur"),
    "another format": (_set("format", "pickle"), "is not a plan"),
    "version true": (_set("version", True), "version is not a number"),
    "a mask too long": (_set("keep", "up", "0-20"), "is not within its 20 units"),
    "a mask that descends": (_set("keep", "up", "5,3"), "is not within its 20 units"),
    "a mask of nothing": (_set("keep", "up", ""), "is not a run of units"),
    "a mask of words": (_set("keep", "up", "0-x"), "is not a run of units"),
    "a mask of other digits": (_set("keep", "up", "٣"), "is not a run of units"),
    "a number for a mask": (_set("keep", "up", 5), "not a text of runs"),
    "rows where there are none": (_set("keep", "up", ["0", "1"]), "too few or many rows"),
    "an unknown class": (_set("keep", "nobody", "0"), "no tensor has it"),
    "a class no tensor has": (
        lambda d: (d["sizes"].update(ghost=10**12), d["keep"].update(ghost="0")),
        "no tensor has it",
    ),
    "a huge class": (
        lambda d: (
            d["sizes"].update(ghost=1 << 40),
            d["keep"].update(ghost="0"),
            d["shapes"].update(ghost=[1 << 40]),
            d["axes"].update(ghost=["ghost"]),
        ),
        "impossibly large",
    ),
    "a negative size": (_set("sizes", "up", -20), "no proper size"),
    "a size that is no number": (_set("sizes", "up", "20"), "no proper size"),
    "a huge shape": (_set("shapes", "up.weight", [1 << 60, 12]), "not a list of sizes"),
    "a negative shape": (_set("shapes", "up.weight", [-20, 12]), "not a list of sizes"),
    "a shape the axes do not have": (_set("shapes", "up.weight", [21, 12]), "its axes have sizes"),
    "too few axes": (_set("axes", "up.weight", ["up"]), "not as many"),
    "an axis of an unknown class": (_set("axes", "up.weight", ["ghost", 12]), "unknown class"),
    "an axis of an unknown kind": (
        _set("axes", "up.weight", [["eval", "up"], 12]),
        "no kind of axis",
    ),
    "an axis that is a table": (_set("axes", "up.weight", [{"up": 1}, 12]), "neither size nor"),
    "positions that are not there": (
        _set("axes", "up.bias", [["take", "up", [20] * 20]]),
        "positions that are not there",
    ),
    "axes nested deeply": (
        _set("axes", "up.bias", [json.loads('["prod",' * 60 + "20" + "]" * 60)]),
        "nested too deeply",
    ),
    "a product that overflows": (
        _set("axes", "up.bias", [["prod"] + [1 << 40] * 8]),
        "impossibly large",
    ),
    "tensors without axes": (lambda d: d["axes"].pop("up.bias"), "name different tensors"),
    "a path for a tensor": (
        lambda d: [d[table].update({"../../etc/passwd": [3]}) for table in ("shapes", "axes")],
        "no tensor '../../etc/passwd'",
    ),
    "a path for a file": (_set("files", "../model.safetensors", {}), "without weights"),
    "no files": (_set("files", {}), "without weights"),
    "files that say nothing": (_set("files", WEIGHTS, []), "does not say what is in"),
    "a tensor that is null": (_set("files", WEIGHTS, "tensors", "x", None), r"plan\.json says"),
    "an added tensor that is not there": (_set("added", ["x"]), "list of tensors is damaged"),
    "an added tensor of another": (_set("added", ["up.weight"]), "has no place|no place"),
    "a buffer equal to nothing": (_set("same", {"wave_again": "ghost"}), "list of tensors"),
    "a private attribute": (
        _set("edits", [{"module": "up", "name": "__class__", "value": 1}]),
        "not a public attribute",
    ),
    "a path to a private attribute": (
        _set("edits", [{"module": "up", "name": "weight._backward_hooks", "value": 1}]),
        "not a public attribute",
    ),
    "an attribute that is not there": (
        _set("edits", [{"module": "up", "name": "nobody", "value": 1}]),
        "not a number",
    ),
    "an attribute of the class": (
        _set("edits", [{"module": "", "name": "dump_patches", "value": 1}]),
        "not a number",
    ),
    "a method": (_set("edits", [{"module": "up", "name": "forward", "value": 1}]), "not a number"),
    "a switch": (_set("edits", [{"module": "up", "name": "training", "value": 1}]), "not a number"),
    "a number that becomes a list": (
        _set("edits", [{"module": "up", "name": "in_features", "value": [1]}]),
        "not a number",
    ),
    "a number that becomes text": (
        _set("edits", [{"module": "up", "name": "in_features", "value": "1"}]),
        "something else than numbers",
    ),
    "a module that is not there": (
        _set("edits", [{"module": "gone", "name": "in_features", "value": 1}]),
        "edits module 'gone'",
    ),
    "a function to call": (
        _set(
            "edits",
            [{"module": "", "name": "args/1", "value": 1, "function": "load", "call": 0}],
        ),
        "not a function whose sizes may change",
    ),
    "an argument by a private name": (
        _set(
            "edits",
            [{"module": "", "name": "kwargs/__x", "value": 1, "function": "view", "call": 0}],
        ),
        "no argument of a call",
    ),
    "a factor of zero": (
        _set(
            "edits",
            [{"module": "", "name": "args/1", "value": {"times": [1, 0]}, "function": "view",
              "call": 0}],
        ),
        "no proper factor",
    ),
    "an edit with more fields": (
        _set("edits", [{"module": "", "name": "x", "value": 1, "code": "1"}]),
        "has other fields",
    ),
    "edits unsolved": (_set("edits", None), "a plan alone, without weights"),
    "notes that are no texts": (_set("notes", [1]), "not a list of texts"),
    "a plan that is a list": (lambda d: d.update(keep=[]), "'keep' is not a table"),
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_contents_with_a_right_digest_are_refused(what, folder):
    change, match = HOSTILE[what]
    path = folder("branches")
    rewrite(path, change)
    refused(path, match=match)


def test_contents_that_were_changed_are_refused_by_their_digest(folder):
    path = folder("branches")
    rewrite(path, _set("notes", ["all is well"]), sign=False)
    refused(path, match="changed after it was written")


@pytest.mark.parametrize(
    "text",
    [
        b"", b"{", b"[]", b"null", b"\xff\xfe{}", b'{"format": NaN}', b'{"a": 1, "a": 2}',
        b"[" * 200_000, b'{"a":' * 100_000, b"9" * 5000, b"\x80\x04\x95cos\nsystem\n",
    ],
    ids=range(11),
)  # fmt: skip
def test_a_plan_file_that_is_no_json_of_a_plan_is_refused(text, folder):
    path = folder("branches")
    (path / "plan.json").write_bytes(text)
    refused(path)


def test_a_huge_plan_file_is_not_read(folder):
    path = folder("branches")
    with (path / "plan.json").open("r+b") as file:
        file.truncate(1 << 40)  # sparse
    refused(path, match="far more than such a file can have")


def test_a_weights_file_with_a_huge_header_is_refused(folder):
    path = folder("branches")
    (path / WEIGHTS).write_bytes((1 << 60).to_bytes(8, "little") + b"{}" * 50)
    entry = {"sha256": sha256_of(path / WEIGHTS), "bytes": (path / WEIGHTS).stat().st_size}
    rewrite(path, lambda d: d["files"][WEIGHTS].update(entry))
    refused(path, match="is not a safetensors file")


def test_a_pickle_in_the_place_of_weights_is_refused(folder, tmp_path):
    path = folder("branches")

    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    torch.save({"up.weight": Trap()}, path / WEIGHTS)
    entry = {"sha256": sha256_of(path / WEIGHTS), "bytes": (path / WEIGHTS).stat().st_size}
    rewrite(path, lambda d: d["files"][WEIGHTS].update(entry))
    refused(path, match="is not a safetensors file")
    assert not (tmp_path / "executed").exists()


def _update(name, make):
    def change(tensors):
        tensors[name] = make(tensors[name])

    return change


@pytest.mark.parametrize(
    "change",
    [
        _update("up.weight", torch.Tensor.double),
        _update("up.weight", lambda t: t.T.contiguous()),
        lambda tensors: tensors.pop("up.weight"),
        lambda tensors: tensors.update(extra=torch.zeros(3)),
        _update("norm.num_batches_tracked", torch.Tensor.float),
    ],
    ids=["type", "shape", "missing", "extra", "counter"],
)
def test_tensors_that_plan_json_does_not_describe_are_refused(change, folder):
    path = folder("branches")
    reweigh(path, change)
    refused(path, match=r"plan\.json says")


def test_tensors_that_the_plan_does_not_make_are_refused(folder):
    path = folder("branches")
    table = ("files", WEIGHTS, "tensors")
    reweigh(path, _update("up.weight", lambda t: t[:-1].contiguous()))
    rewrite(path, _set(*table, "up.weight", ["F32", [9, 12]]))
    path_tensors = load_file(path / WEIGHTS)
    rewrite(path, _set(*table, "up.weight", ["F32", list(path_tensors["up.weight"].shape)]))
    refused(path, match="the plan makes")


def test_an_extra_tensor_that_plan_json_describes_is_refused(folder):
    path = folder("branches")
    reweigh(path, lambda tensors: tensors.update({"ghost.weight": torch.zeros(3)}))
    rewrite(path, _set("files", WEIGHTS, "tensors", "ghost.weight", ["F32", [3]]))
    refused(path, match="that the plan lacks")
    rewrite(path, _set("added", ["ghost.weight"]))
    refused(path, match="has no place")


def test_links_and_pipes_in_the_place_of_files(folder, tmp_path):
    path = folder("branches")
    shutil.copytree(path, tmp_path / "other")
    (path / WEIGHTS).unlink()
    (path / WEIGHTS).symlink_to("/dev/zero")
    refused(path, match="not an ordinary file")
    (path / WEIGHTS).unlink()
    os.mkfifo(path / WEIGHTS)
    refused(path, match="not an ordinary file")
    (path / WEIGHTS).unlink()
    (path / WEIGHTS).mkdir()
    refused(path, match="not an ordinary file")
    (path / WEIGHTS).rmdir()
    (path / WEIGHTS).symlink_to(path / WEIGHTS)
    refused(path, match="missing or cannot be read")
    (path / WEIGHTS).unlink()
    (path / WEIGHTS).symlink_to(tmp_path / "other" / WEIGHTS)  # as caches of hubs do
    load(build("branches"), path)


@pytest.fixture(scope="module")
def original(pruned, tmp_path_factory):
    _, plan, small = pruned("branches")
    path = save(tmp_path_factory.mktemp("fuzz") / "original", small, plan)
    return path, {n: t.clone() for n, t in named_tensors(small).items()}


def loads_exactly_or_not_at_all(path, expected):
    """True if it loaded."""
    model = build("branches", 1)
    before = bits(model)
    try:
        loaded = load(model, path)
    except StoreError:
        assert same_bits(before, bits(model))
        return False
    found = named_tensors(loaded)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[n], t) for n, t in expected.items())
    assert same_bits(before, bits(model))
    return True


MANY = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@MANY
@given(data=st.data())
def test_random_damage_is_refused_or_harmless(data, original, tmp_path):
    """Flipped, cut and inserted bytes anywhere in any of the files."""
    path, expected = original
    copied = tmp_path / "copy"
    shutil.rmtree(copied, ignore_errors=True)
    shutil.copytree(path, copied)
    file = copied / data.draw(st.sampled_from(["plan.json", WEIGHTS, "buffers.safetensors"]))
    content = bytearray(file.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    match data.draw(st.sampled_from(["flip", "cut", "insert", "zero"])):
        case "flip":
            content[at] ^= data.draw(st.integers(1, 255))
        case "cut":
            del content[at : at + data.draw(st.integers(1, 50))]
        case "insert":
            content[at:at] = data.draw(st.binary(min_size=1, max_size=9))
        case "zero":
            content[at:] = bytes(len(content) - at)
    file.write_bytes(bytes(content))
    loads_exactly_or_not_at_all(copied, expected)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.sampled_from(["up", "qkv", "0-3", "args/1", "take", "prod", "over", "__class__", "view"]),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=8,
)


def places(value, path=()):
    yield path
    items = value.items() if isinstance(value, dict) else ()
    for key, inner in enumerate(value) if isinstance(value, list) else items:
        yield from places(inner, (*path, key))


def edit(data, draw):
    """Replace, remove, double or swap something anywhere in the data."""
    path = draw(st.sampled_from([p for p in places(data) if p]))
    parent = data
    for key in path[:-1]:
        parent = parent[key]
    match draw(st.sampled_from(["replace", "remove", "nudge", "add"])):
        case "replace":
            parent[path[-1]] = draw(JSON)
        case "remove":
            del parent[path[-1]]
        case "nudge":
            old = parent[path[-1]]
            if isinstance(old, int):
                parent[path[-1]] = old + draw(st.sampled_from([-1, 1, 2**40]))
            elif isinstance(old, str):
                parent[path[-1]] = draw(st.sampled_from([old + "x", old[:-1], old.upper()]))
            elif isinstance(old, list):
                parent[path[-1]] = old * 2
        case "add":
            if isinstance(parent, dict):
                parent[draw(st.text(max_size=6))] = draw(JSON)
            else:
                parent.insert(path[-1], draw(JSON))


@MANY
@given(data=st.data(), signed=st.booleans())
def test_random_edits_of_the_plan_are_refused_or_load_the_stored_tensors(
    data, signed, original, tmp_path
):
    """With and without a right digest; what loads has exactly the tensors in the files."""
    path, expected = original
    copied = tmp_path / "copy"
    shutil.rmtree(copied, ignore_errors=True)
    shutil.copytree(path, copied)
    content = json.loads((copied / "plan.json").read_text())
    before = copy.deepcopy(content)
    edit(content, data.draw)
    if signed and isinstance(content, dict):
        content.pop("sha256", None)
        content["sha256"] = digest(content)
    (copied / "plan.json").write_text(json.dumps(content))
    loaded = loads_exactly_or_not_at_all(copied, expected)
    if not signed and content != before:
        assert not loaded


@MANY
@given(data=st.data())
def test_random_edits_of_a_plan_alone_give_a_plan_or_a_store_error(data, original, tmp_path):
    path, _ = original
    content = json.loads((path / "plan.json").read_text())
    for _ in range(data.draw(st.integers(1, 3))):
        edit(content, data.draw)
        if not isinstance(content, dict):
            break
    if isinstance(content, dict):
        content.pop("sha256", None)
        content["sha256"] = digest(content)
    file = tmp_path / "plan.json"
    file.write_text(json.dumps(content))
    try:
        plan = Plan.load(file)
    except StoreError:
        return
    model = build("branches", 1)
    before = bits(model)
    try:
        plan.apply(model)
    except SecateurError:
        assert same_bits(before, bits(model))


@pytest.mark.parametrize("code", [errno.EIO, errno.EACCES])
@pytest.mark.parametrize("name", ["plan.json", WEIGHTS, "buffers.safetensors"])
def test_a_file_that_cannot_be_read_is_named(name, code, folder, monkeypatch):
    """A disk error, or no right to read (which root always has)."""
    path = folder("branches")
    real = io.open

    def failing(file, *args, **kwargs):
        if str(file).endswith(name):
            raise OSError(code, os.strerror(code))
        return real(file, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(io, "open", failing)
        assert os.strerror(code) in refused(path) and name in refused(path)


@pytest.mark.parametrize("change", [lambda p: p.to(torch.complex128), lambda p: p.to("meta")])
def test_a_tensor_that_no_file_can_hold_is_named(change, pruned, tmp_path):
    model, plan, _ = pruned("plain")
    small = plan.apply(model)
    small.c.weight = torch.nn.Parameter(change(small.c.weight.detach()))
    with pytest.raises(StoreError, match=r"c\.weight cannot be saved"):
        save(tmp_path / "m", small, plan)
    assert not (tmp_path / "m").exists()
