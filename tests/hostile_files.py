"""Small valid files of every kind that is read, and the means to spoil them; shared by the tests and by the fuzzer."""
import gzip, io, json, lzma, os, pickle, struct, zlib
from pathlib import Path
import numpy as np, pandas as pd, soundfile as sf, torch
from PIL import Image
from lmac_piq.classifier import AudioClassifier
from lmac_piq.training import seeded

RATE = 16000


def encode(x: np.ndarray, format: str, subtype: str | None = None, endian: str | None = None, rate: int = RATE) -> bytes:
    "Samples [T] or [T, channels] as a sound file"
    out = io.BytesIO()
    sf.write(out, x, rate, format=format, subtype=subtype, endian=endian)
    return out.getvalue()


def sounds() -> dict[str, bytes]:
    "Half a second of stereo noise in every container"
    x = 0.1*np.random.default_rng(0).standard_normal((RATE//2, 2))
    return {format.lower(): encode(x, format) for format in ("WAV", "FLAC", "OGG", "MP3", "AIFF", "RF64")} | {"rifx": encode(x, "WAV", endian="BIG")}


def riff(data: bytes = bytes(2000), *, rate: int = RATE, channels: int = 1, bits: int = 16, codec: int = 1, size: int | None = None, before: bytes = b"", after: bytes = b"") -> bytes:
    "A WAV file whose header says what it is told to say"
    frame = channels*bits//8
    head = struct.pack("<HHIIHH", codec, channels, rate, rate*frame % 2**32, frame % 2**16, bits)
    body = b"WAVEfmt " + struct.pack("<I", len(head)) + head + before + b"data" + struct.pack("<I", len(data) if size is None else size) + data + after
    return b"RIFF" + struct.pack("<I", len(body)) + body


def floats(*values: float, bits: int = 32, channels: int = 1) -> bytes:
    "A WAV file of floating-point samples"
    return riff(np.tile(np.array(values, f"<f{bits//8}"), 500).tobytes(), codec=3, bits=bits, channels=channels)


def idx(array: np.ndarray) -> bytes: return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def npy(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def npy_header(text: str, data: bytes = b"") -> bytes:
    "A .npy file whose header says what it is told to say"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text) + 1) + text.encode() + b"\n" + data


def greedy_xz(content: bytes) -> bytes:
    "An .xz file whose header says that unpacking it takes a gigabyte"
    packed = lzma.compress(content)
    block, rest = bytearray(packed[12:12 + 4*(packed[12] + 1)]), packed[12 + 4*(packed[12] + 1):]
    block[block.index(b"\x21\1") + 2] = 36        # 2 * 2^29 bytes of dictionary
    block[-4:] = struct.pack("<I", zlib.crc32(block[:-4]))
    return packed[:12] + block + rest


def picture(mode: str = "RGB", format: str = "JPEG", size: tuple[int, int] = (96, 96)) -> bytes:
    "A picture with a bright corner"
    out, image = io.BytesIO(), Image.new("L", size)
    image.paste(255, (0, 0, size[0]//2, size[1]//2))
    image.convert(mode).save(out, format)
    return out.getvalue()


def make_images(root: Path) -> Path:
    "The test halves of MNIST, Quick, Draw! and the colour crops"
    pixels, labels = np.random.default_rng(0).integers(0, 256, (12, 28, 28), dtype=np.uint8), (np.arange(12) % 10).astype(np.uint8)
    for name in ("mnist", "quickdraw", "ccp_crops/test"): (root/name).mkdir(parents=True)
    (root/"mnist/t10k-images-idx3-ubyte.xz").write_bytes(lzma.compress(idx(pixels)))
    (root/"mnist/t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels)))
    (root/"quickdraw/test_images.npy").write_bytes(npy(pixels))
    (root/"quickdraw/test_labels.npy").write_bytes(npy(labels))
    (root/"quickdraw/classes.txt").write_text("\n".join(f"thing {i}" for i in range(10)))
    rows = [dict(file=f"test/{i}.jpg", mask=f"test/{i}.png", split="test", label=["bag", "shoes"][i % 2], photo=f"{i:04d}") for i in range(4)]
    for row in rows:
        (root/"ccp_crops"/row["file"]).write_bytes(picture())
        (root/"ccp_crops"/row["mask"]).write_bytes(picture("1", "PNG"))
    pd.DataFrame(rows).to_csv(root/"ccp_crops/crops.csv", index=False)
    return root


def make_model(folder: Path) -> Path:
    "A saved classifier of 5000 weights"
    with seeded(0): return AudioClassifier(["low", "high"], width=0.01, n_mels=20).save_pretrained(folder)


def safetensors(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    "A safetensors file whose header says what it is told to say"
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


class Harm:
    "An object whose unpickling makes a folder"
    def __init__(self, marker: Path): self.marker = marker
    def __reduce__(self) -> tuple: return os.mkdir, (str(self.marker),)


def payloads(marker: Path) -> dict[str, bytes]:
    "The object in every wrapping that some reader would unpickle"
    def saved(**how) -> bytes:
        out = io.BytesIO()
        torch.save({"config": {}, "module": Harm(marker)}, out, **how)
        return out.getvalue()
    objects, archive = np.array([Harm(marker)], dtype=object), io.BytesIO()
    np.savez(archive, waves=objects)
    return {"pickle": pickle.dumps(Harm(marker)), "pickle of protocol 0": pickle.dumps(Harm(marker), 0), "torch zip": saved(), "torch legacy": saved(_use_new_zipfile_serialization=False),
            "npy": npy(objects), "npz": archive.getvalue()}
