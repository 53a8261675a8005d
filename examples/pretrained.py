"""Your own images and a pretrained network: which saliency methods may you show?

python examples/pretrained.py photo.jpg another.png       # or a folder; without arguments, the packages' photographs
"""

import argparse
from pathlib import Path

import torch
from PIL import Image
from torchvision.transforms import functional as transform

from lightning_sanity import parameter_randomization_test
from lightning_sanity.cli import photos

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}


def read(paths, size):
    files = [file for path in map(Path, paths) for file in ([path] if path.is_file() else sorted(path.iterdir()))]
    images = {}
    for file in (file for file in files if file.suffix.lower() in SUFFIXES):
        square = transform.resize(Image.open(file).convert("RGB"), size, antialias=True)
        images[file.stem] = transform.to_tensor(transform.center_crop(square, size))
    return images


def main(
    paths=(), out="pretrained", size=160, trials=5, max_steps=8, methods=("gradient", "gradcam", "guided_backprop")
):
    images = read(paths, size) if paths else photos.photographs(size)
    if len(images) < 2:
        raise SystemExit(f"two images at least are needed, with one of the endings {', '.join(sorted(SUFFIXES))}")
    model, inputs = photos.pretrained(), photos.standardised(images)
    with torch.no_grad():
        print("classes of ImageNet:", dict(zip(images, model(inputs).argmax(1).tolist(), strict=True)))
    result = parameter_randomization_test(model, inputs, methods=list(methods), trials=trials, max_steps=max_steps)
    Path(out).mkdir(parents=True, exist_ok=True)
    result.to_json(Path(out) / "result.json")
    result.to_html(Path(out) / "report.html")
    print(result)
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("paths", nargs="*", help="image files or folders")
    parser.add_argument("--out", default="pretrained")
    parser.add_argument("--size", type=int, default=160, help="side in pixels")
    parser.add_argument("--trials", type=int, default=5)
    main(**vars(parser.parse_args()))
