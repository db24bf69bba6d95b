"""CIFAR in the format of the original files: nothing is unpickled before its checksum, nothing leaves the archive."""

from __future__ import annotations

import hashlib
import os
import pickle
import tarfile
from pathlib import Path

import pytest
import torch

from calibnorm.errors import UsageError
from calibnorm.lab import data


class Malicious:
    """Makes a file when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


def test_cifar10_from_its_folder(cifar10):
    cifar10.write()
    images = data.load("cifar10", cifar10.root)
    for actual, expected in ((images.train, cifar10.train), (images.test, cifar10.test)):
        assert torch.equal(actual.images, expected.images)
        assert torch.equal(actual.labels, expected.labels)
    assert (images.classes, images.channels, images.size) == (10, 3, 32)
    pixels = cifar10.train.images.double().transpose(0, 1).flatten(1) / 255
    assert images.mean == pytest.approx(pixels.mean(1).tolist(), rel=1e-12)
    assert images.std == pytest.approx(pixels.std(1, correction=0).tolist(), rel=1e-12)


@pytest.mark.filterwarnings("ignore:dtype")  # numpy 2.4 warns of the originals' 0 and 1; we read them without
def test_the_files_are_what_python_unpickles(cifar100):
    entry = pickle.loads(cifar100.files["train"], encoding="latin1")
    assert torch.equal(torch.from_numpy(entry["data"]).view(-1, 3, 32, 32), cifar100.train.images)
    assert entry["fine_labels"] == cifar100.train.labels.tolist()


def test_cifar100_from_the_archive_without_unpacking(cifar100):
    cifar100.write_archive()
    images = data.load("cifar100", cifar100.root)
    assert torch.equal(images.train.images, cifar100.train.images)
    assert torch.equal(images.test.labels, cifar100.test.labels)
    assert images.classes == 100
    assert list(cifar100.root.iterdir()) == [cifar100.archive]


@pytest.mark.parametrize(
    ("name", "title", "archive"),
    [("cifar10", "CIFAR-10", "cifar-10-python.tar.gz"), ("cifar100", "CIFAR-100", "cifar-100-python.tar.gz")],
)
def test_missing_set_says_what_goes_where(tmp_path, name, title, archive):
    with pytest.raises(UsageError) as error:
        data.load(name, tmp_path)
    address = f"https://www.cs.toronto.edu/~kriz/{archive}"
    assert str(error.value) == f"{title} is missing: download {address} into {tmp_path} (it need not be unpacked)"


def test_changed_file_is_refused_before_it_is_unpickled(cifar10, tmp_path):
    cifar10.files["data_batch_3"] = pickle.dumps(Malicious(tmp_path / "trace"))
    cifar10.write()
    with pytest.raises(UsageError, match="data_batch_3 is not the original"):
        data.load("cifar10", cifar10.root)
    assert not (tmp_path / "trace").exists()
    pickle.loads(cifar10.files["data_batch_3"])  # the trace does come when somebody unpickles
    assert (tmp_path / "trace").exists()


def test_a_file_that_calls_something_is_refused_even_with_the_right_checksum(cifar10, tmp_path):
    cifar10.files["data_batch_3"] = pickle.dumps(Malicious(tmp_path / "trace"))
    cifar10.know("data_batch_3", cifar10.files["data_batch_3"])
    cifar10.write()
    with pytest.raises(UsageError, match="mkdir, which no original does"):
        data.load("cifar10", cifar10.root)
    assert not (tmp_path / "trace").exists()


def test_missing_file_is_named(cifar10):
    cifar10.write()
    (cifar10.folder / "test_batch").unlink()
    with pytest.raises(UsageError, match="test_batch: cannot be read"):
        data.load("cifar10", cifar10.root)


def test_changed_or_incomplete_archive_is_refused(cifar10):
    cifar10.write_archive()
    cifar10.archive.write_bytes(cifar10.archive.read_bytes()[:-100])
    with pytest.raises(UsageError, match=r"not the original .*, or not whole"):
        data.load("cifar10", cifar10.root)


def test_archive_that_is_none_is_refused(cifar10, monkeypatch):
    cifar10.root.mkdir()
    cifar10.archive.write_bytes(b"no archive")
    monkeypatch.setattr(cifar10.known, "tgz_md5", hashlib.md5(b"no archive").hexdigest())
    with pytest.raises(UsageError, match="data_batch_1 cannot be read"):
        data.load("cifar10", cifar10.root)


def test_links_and_parents_in_an_archive_lead_nowhere(cifar10, tmp_path):
    """Even where the archive's checksum is the known one."""
    secret = tmp_path / "secret"
    secret.write_bytes(cifar10.files["data_batch_1"])
    link = tarfile.TarInfo(f"{cifar10.known.base_folder}/data_batch_1")
    link.type, link.linkname = tarfile.SYMTYPE, str(secret)
    outside = tarfile.TarInfo("../escaped")
    cifar10.write_archive([link, outside])
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UsageError, match="data_batch_1 cannot be read"):
        data.load("cifar10", cifar10.root)
    assert sorted(tmp_path.rglob("*")) == before
