"""The settings of a dataset, and the sizes that follow from them."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    """The images."""

    name: str
    """A data set that `st3.data.build_data` knows."""
    root: str | None = None
    """Folder with the data."""
    classes: int | None = None
    """Number of classes; null: read from the folder."""
    channels: int
    """1 (grey) or 3 (RGB); image files are converted."""
    image_size: int
    """Side of the square images that the network sees, in pixels."""
    mean: list[float]
    """Mean of each channel, of pixels in [0, 1]."""
    std: list[float]
    """Standard deviation of each channel."""
    augment: str = "none"
    """Of training images. none; crop: shifted by up to 4 pixels, the edge repeated; crop_flip: the same, and mirrored
    with probability 0.5; random_resized_crop: of image folders, whose files are then decoded anew in each epoch."""
    val_images: int | float = 0
    """Training images held out for validation, always the same ones: their number, drawn from all; or a fraction such
    as 0.1, drawn from each class. Of a folder without val/ and test/ either is drawn from each class, for testing."""
    train_images: int | None = None
    """Training images before the hold-out; null: counted in the folder."""
    test_images: int | None = None
    """Test images; null: counted in the folder, or what is held out of it."""
    workers: int = 0
    """Processes that read image files; 0: the training process reads them."""
    download: bool = False
    """Fetch a known data set that is not at root."""
    decode: str = "cpu"
    """JPEG files with random_resized_crop: cpu (the workers) or gpu (on CUDA, with the same crops)."""
    cache: str | None = None
    """Folder where an image folder that is decoded once (any other augment) leaves its pixels; null: nowhere."""
    on_error: str = "stop"
    """An image file that cannot be read. stop: ends the run. skip: is left out and counted; in training the next one
    in the listing takes its place, so that batches keep their size. More than 1 % of a split, or 100, end the run."""
    changed: str = "stop"
    """A run that is continued and finds other data than it began with: other files, classes or pixels. stop: refuses.
    accept: goes on with what is there now."""

    @property
    def streamed(self) -> bool:
        """Whether image files are decoded in each epoch, not once into memory."""
        return self.augment == "random_resized_crop"


@dataclass(frozen=True)
class Facts:
    """Sizes of the data set, known without reading an image."""

    classes: int
    train_images: int
    """What is trained on, after the hold-out."""
    val_images: int
    test_images: int
