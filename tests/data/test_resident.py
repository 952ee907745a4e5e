import numpy as np
import pytest
import torch
from PIL import Image

from edkd.data import _torchvision, views
from edkd.data.arrays import Split
from edkd.data.resident import ResidentData

MEAN, STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
CPU = torch.device("cpu")


def random_split(n, height=32, width=32):
    random = np.random.RandomState(n)
    images = random.randint(0, 256, size=(n, height, width, 3)).astype(np.uint8)
    return Split(images, random.randint(0, 100, size=n).astype(np.int64))


def device_data(split, *, padding=4, flip=True, channels_last=True, mean=MEAN, std=STD):
    return ResidentData(split, mean=mean, std=std, padding=padding, flip=flip, device=CPU, channels_last=channels_last)


def torchvision_view(image, view, padding, flip):
    """What torchvision's transforms make of a PIL image for one outcome of their random draws."""
    transforms = _torchvision.load().transforms.functional
    dy, dx, flipped = (int(part) for part in views.decode(torch.tensor([view]), padding, flip))
    picture = transforms.pad(Image.fromarray(image), padding, fill=0)
    picture = transforms.crop(picture, dy, dx, *image.shape[:2])
    if flipped:
        picture = transforms.hflip(picture)
    return transforms.normalize(transforms.to_tensor(picture), MEAN, STD)


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize(
    ("padding", "flip", "height", "width"),
    [(4, True, 32, 32), (4, False, 32, 32), (1, True, 16, 16), (0, True, 8, 8), (0, False, 8, 8), (2, True, 5, 9)],
)
def test_every_view_is_bit_identical_to_torchvision(padding, flip, height, width, channels_last):
    count = views.n_views(padding, flip)
    split = random_split(count + 7, height, width)
    data = device_data(split, padding=padding, flip=flip, channels_last=channels_last)
    index = torch.randperm(count + 7, generator=torch.Generator().manual_seed(0))[:count]
    got = data.augmented(index, torch.arange(count))
    expected = torch.stack([torchvision_view(split.images[i], v, padding, flip) for v, i in enumerate(index.tolist())])
    assert got.dtype == torch.float32
    assert torch.equal(got, expected)


def test_every_pixel_value_is_bit_identical_in_every_channel():
    ramp = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    split = Split(ramp, np.zeros(1, dtype=np.int64))
    got = device_data(split, padding=0, flip=False).plain(torch.tensor([0]))
    assert torch.equal(got[0], torchvision_view(ramp[0], 0, 0, False))


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize(("padding", "flip"), [(4, True), (3, False), (0, False)])
def test_plain_is_the_identity_view(padding, flip, channels_last):
    split = random_split(20)
    data = device_data(split, padding=padding, flip=flip, channels_last=channels_last)
    index = torch.tensor([19, 0, 7, 7])
    plain = data.plain(index)
    identity = torch.full((4,), (padding * (2 * padding + 1) + padding) * (2 if flip else 1))
    assert torch.equal(plain, data.augmented(index, identity))
    raw = torch.from_numpy(split.images[index.numpy()]).permute(0, 3, 1, 2)
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    assert torch.equal(plain, (raw.float() / 255 - mean) / std)


@pytest.mark.parametrize("channels_last", [True, False])
def test_memory_format_is_the_one_asked_for(channels_last):
    wanted = torch.channels_last if channels_last else torch.contiguous_format
    data = device_data(random_split(9), channels_last=channels_last)
    index = torch.arange(9)
    for images in (data.plain(index), data.augmented(index, index)):
        assert images.shape == (9, 3, 32, 32)
        assert images.is_contiguous(memory_format=wanted)


def test_padding_is_black_before_normalising():
    data = device_data(random_split(3))
    corner = data.augmented(torch.tensor([1]), torch.tensor([0]))[0, :, :4]
    black = -torch.tensor(MEAN) / torch.tensor(STD)
    assert torch.equal(corner, black[:, None, None].expand(3, 4, 32))


def test_targets_follow_the_index_and_the_length_is_the_number_of_images():
    split = random_split(11)
    data = device_data(split)
    index = torch.tensor([10, 3, 3])
    assert torch.equal(data.targets(index), torch.from_numpy(split.labels[[10, 3, 3]]))
    assert data.targets(index).dtype == torch.int64
    assert len(data) == 11


@pytest.mark.parametrize("size", [0, 1])
def test_small_batches(size):
    data = device_data(random_split(5))
    index = torch.arange(size)
    assert data.augmented(index, index).shape == (size, 3, 32, 32)
    assert data.plain(index).shape == (size, 3, 32, 32)


def test_images_are_kept_as_bytes():
    split = random_split(50)
    data = device_data(split)
    held = [value for value in vars(data).values() if isinstance(value, torch.Tensor) and value.dtype == torch.uint8]
    assert [value.untyped_storage().nbytes() for value in held] == [50 * 40 * 40 * 3]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("channels_last", [True, False])
def test_a_captured_graph_on_cuda_gives_the_bits_of_the_cpu(channels_last):
    split, device = random_split(162), torch.device("cuda")
    data = ResidentData(split, mean=MEAN, std=STD, padding=4, flip=True, device=device, channels_last=channels_last)
    index, view = torch.zeros(162, dtype=torch.int64, device=device), torch.zeros(162, dtype=torch.int64, device=device)
    data.augmented(index, view)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        images, target = data.augmented(index, view), data.targets(index)
    index.copy_(torch.arange(162).flip(0))
    view.copy_(torch.arange(162))
    graph.replay()
    assert torch.equal(images.cpu(), device_data(split).augmented(index.cpu(), view.cpu()))
    assert torch.equal(target.cpu(), torch.from_numpy(split.labels[::-1].copy()))
