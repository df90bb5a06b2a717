"""Where samples come from: one file per kind of data source."""

from hwprune.frontend.sources.arrays import read_digits, read_npz
from hwprune.frontend.sources.cifar import read_cifar10, read_cifar100
from hwprune.frontend.sources.fashion_mnist import read_fashion_mnist
from hwprune.frontend.sources.image_folder import read_image_folder
from hwprune.frontend.sources.python_file import read_python_file

__all__ = [
    "read_cifar10",
    "read_cifar100",
    "read_digits",
    "read_fashion_mnist",
    "read_image_folder",
    "read_npz",
    "read_python_file",
]
