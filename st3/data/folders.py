"""Image folders ROOT/SPLIT/CLASS/FILE: listing, decoding in worker processes, the loader that never holds them all."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from st3.data.loader import Loader, Normalise, mixed_seed
from st3.errors import UserError


def split_folders(root: str | None) -> dict[str, Path]:
    """The folders of an image tree by use, "train" and "test", and "val" where there is one for it.

    Of root/val and root/test the only one is the test folder. With both, they are what their names say; but a test/
    without the class folders of val/ (ImageNet's has no labels) is passed over, and val/ is the test folder.

    Raises:
        UserError: no root, or one of the folders is missing.
    """
    if root is None:
        raise UserError("dataset.root=DIR is needed: the folder that holds train/ and val/ or test/")
    train, val, test = (Path(root, name) for name in ("train", "val", "test"))
    for missing, name in ((not train.is_dir(), "train/"), (not val.is_dir() and not test.is_dir(), "val/ or test/")):
        if missing:
            raise UserError(
                f"dataset.root={root} has no {name} folder; set dataset.root=DIR with train/CLASS/FILE and "
                "val/CLASS/FILE or test/CLASS/FILE"
            )

    def classes(folder: Path) -> list[str]:
        return sorted(each.name for each in folder.iterdir() if each.is_dir()) if folder.is_dir() else []

    if classes(val) and classes(val) == classes(test):
        return {"train": train, "val": val, "test": test}
    return {"train": train, "test": val if val.is_dir() else test}


def scan(folder: Path) -> ImageFolder:
    """List one split without opening a file: `.classes`, `.samples`, `.targets`, in sorted order.

    Raises:
        UserError: no class folder, or a class folder without image files.
    """
    try:
        return ImageFolder(folder)
    except FileNotFoundError as error:
        raise UserError(f"{error} ({folder}): remove empty class folders or set dataset.root=DIR") from None


def scan_tree(root: str | None) -> dict[str, ImageFolder]:
    """Listings of an image tree by use, as `split_folders`.

    Raises:
        UserError: as `split_folders` and `scan`, or the splits hold other classes.
    """
    splits = {use: scan(folder) for use, folder in split_folders(root).items()}
    train, test = splits["train"], splits["test"]
    if train.classes != test.classes:
        odd = sorted(set(train.classes) ^ set(test.classes))
        raise UserError(
            f"{train.root} and {test.root} hold other classes ({', '.join(odd[:5])}): "
            "give both the same class folders or set dataset.root=DIR"
        )
    return splits


def training_transform(image_size: int) -> Callable[[Image.Image], Image.Image]:
    """Random area and aspect ratio, resized to `image_size`, mirrored with probability 0.5."""
    return v2.Compose([v2.RandomResizedCrop(image_size), v2.RandomHorizontalFlip()])


def evaluation_transform(image_size: int) -> Callable[[Image.Image], Image.Image]:
    """The usual central crop: 256 to 224 pixels, in proportion for other sizes."""
    return v2.Compose([v2.Resize(round(image_size * 256 / 224)), v2.CenterCrop(image_size)])


class _Fit:
    """Whole image, scaled and centrally cropped to a square only where its size differs."""

    def __init__(self, image_size: int):
        self.size = image_size, image_size

    def __call__(self, image: Image.Image) -> Image.Image:
        return image if image.size == self.size else ImageOps.fit(image, self.size, Image.Resampling.BILINEAR)


class _Batches(Dataset):
    """Maps (epoch, indices) to uint8 images [B, C, H, W] and int64 labels [B].

    For an unreadable file the message is returned instead: an exception raised in a worker would reach the main
    process wrapped in the worker's traceback.
    """

    def __init__(self, paths: np.ndarray, labels: torch.Tensor, transform, channels: int, seed: int):
        self.paths = paths
        self.labels = labels
        self.transform = transform
        self.mode = "L" if channels == 1 else "RGB"
        self.seed = seed

    def __getitem__(self, batch: tuple[int, torch.Tensor]):
        epoch, indices = batch
        try:
            # The transforms draw from the global generator, which is lent to them and given back unchanged.
            with torch.random.fork_rng(devices=[]):
                images = np.stack([self.image(epoch, index) for index in indices.tolist()])
        except UserError as error:
            return str(error)
        return torch.from_numpy(images).permute(0, 3, 1, 2), self.labels[indices]

    def image(self, epoch: int, index: int) -> np.ndarray:
        """One augmented image, uint8 [H, W, C]: a function of (seed, epoch, index). Seeds the global generator."""
        path = self.paths[index]
        try:
            with Image.open(path) as file:
                image = file.convert(self.mode)
        except Exception as error:  # Pillow's decoders raise a dozen types
            raise UserError(f"cannot read image {path}: {error}; remove or replace the file") from None
        # 1 + index, because a trailing 0 would mix to the seed of the order. Not torch.manual_seed: it also
        # seeds the accelerators, at a hundred times the cost.
        torch.default_generator.manual_seed(mixed_seed(self.seed, epoch, 1 + index))
        pixels = np.asarray(self.transform(image))
        return pixels.reshape(*pixels.shape[:2], -1)


def _loader(batches: _Batches, sampler, **options) -> DataLoader:
    # batch_size=None: the sampler yields whole batches. The generator: else each epoch draws from the global one.
    return DataLoader(batches, sampler=sampler, batch_size=None, generator=torch.Generator(), **options)


def _checked(loader: DataLoader) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for batch in loader:
        if isinstance(batch, str):
            raise UserError(batch)
        yield tuple(batch)


def decode(paths: np.ndarray, *, image_size: int, channels: int, workers: int) -> torch.Tensor:
    """Read every file once into memory: uint8 [N, channels, image_size, image_size].

    Raises:
        UserError: a file that cannot be read, by its path.
    """
    batches = _Batches(paths, torch.zeros(len(paths)), _Fit(image_size), channels, seed=0)
    chunks = torch.arange(len(paths)).split(1000)
    loader = _loader(batches, [(0, chunk) for chunk in chunks], num_workers=workers)
    return torch.cat([images for images, _ in _checked(loader)])


class FolderLoader(Loader):
    """Decodes, crops and resizes files in `workers` processes (0: in this one); see `Loader`.

    `paths` are N file names (object array [N]), `labels` int64 [N]. A training loader takes a random resized
    crop and mirrors half of the images; any other takes the central crop.

    Raises:
        UserError: from `epoch`, a file that cannot be read, by its path.
    """

    def __init__(
        self,
        paths: np.ndarray,
        labels: torch.Tensor,
        *,
        image_size: int,
        channels: int,
        batch_size: int,
        mean,
        std,
        workers: int = 0,
        training: bool = False,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ):
        super().__init__(labels, batch_size=batch_size, training=training, seed=seed)
        self.device = torch.device(device)
        self.normalise = Normalise(mean, std, image_size, device)
        transform = training_transform(image_size) if training else evaluation_transform(image_size)
        self.sampler: list[tuple[int, torch.Tensor]] = []
        self.loader = _loader(
            _Batches(paths, labels, transform, channels, seed),
            self.sampler,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=self.device.type == "cuda",
        )

    def epoch(self, epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Batches of one epoch; see `Loader`. Starting an epoch ends the one that is under way."""
        random = torch.Generator().manual_seed(mixed_seed(self.seed, epoch))
        chunks = self.order(random).split(self.batch_size)
        self.sampler[:] = [(epoch, chunk) for chunk in chunks]
        for images, labels in _checked(self.loader):
            yield (
                self.normalise(images.to(self.device, non_blocking=True)),
                labels.to(self.device, non_blocking=True),
            )
