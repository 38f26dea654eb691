"""Damaged, odd and malicious files. Each row of a table is a file and what becomes of it: what it loads as, or a piece of the refusal; in seconds, and never by running what it holds."""
import gzip, json, lzma, os, pickle, resource, signal, socket, struct, zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
import numpy as np, pytest, soundfile as sf, torch
from hypothesis import given, settings, strategies as st
from safetensors.torch import load_file, save_file

import lmac_piq.data
from hostile_files import RATE, encode, floats, greedy_xz, idx, make_images, make_model, npy, npy_header, payloads, picture, riff, safetensors, sounds
from lmac_piq.audio import AudioError, load_wave, wave_length
from lmac_piq.classifier import AudioClassifier
from lmac_piq.data import ESC50_COLUMNS, DataError, esc50_files, esc50_table, image_set, noise_pack, read_idx, wave_cache
from lmac_piq.training import CheckpointError, FitConfig, read_checkpoint

SOUNDS = sounds()
LIMIT = 20   # seconds for any one case
pytestmark = pytest.mark.filterwarnings("ignore:Detected pickle protocol", "ignore::PIL.Image.DecompressionBombWarning")
many = settings(max_examples=150, deadline=None)


@contextmanager
def bounded(seconds: float = LIMIT) -> Iterator[None]:
    "Fail where the block takes longer, also where it only waits; nothing that catches errors catches this"
    def late(*_): pytest.fail(f"still not done after {seconds} s")
    old = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try: yield
    finally: signal.setitimer(signal.ITIMER_REAL, 0); signal.signal(signal.SIGALRM, old)


def spoil(base: bytes, at: int, new: bytes) -> bytes:
    "Bytes overwritten from `at` on"
    return base[:at] + new + base[at + len(new):]


def cut(kind: str, part: float) -> bytes: return SOUNDS[kind][:int(part*len(SOUNDS[kind]))]


def one_line(error: Exception) -> str:
    "The message, which any terminal and log can take: one printable line of bearable length that survives pickling"
    text = str(error)
    text.encode("utf8")
    assert text.isprintable() and len(text) < 4000 and str(pickle.loads(pickle.dumps(error))) == text
    return text


# ---- sound

@dataclass
class Wave:
    "What a file loads as"
    samples: int
    peak: float | None = None    # largest magnitude; None: anything up to 1


AT = {kind: SOUNDS[kind].index(word) for kind, word in (("wav", b"data"), ("aiff", b"COMM"), ("mp3", b"Info" if b"Info" in SOUNDS["mp3"] else b"Xing"))}
FLAC, OGG, MP3, AIFF = (SOUNDS[kind] for kind in ("flac", "ogg", "mp3", "aiff"))
HALF = RATE//2
LONG = encode(0.1*np.random.default_rng(0).standard_normal(3*RATE), "OGG")
PAGES = [at for at in range(len(LONG)) if LONG[at:at + 5] == b"OggS\0"]

AUDIO: dict[str, tuple[bytes, Wave | str]] = {
    # whole
    **{f"whole {kind}": (SOUNDS[kind], Wave(HALF)) for kind in SOUNDS},
    "opus in ogg": (encode(0.1*np.ones(RATE), "OGG", "OPUS"), Wave(RATE)),
    # cut short: libsndfile alone reads most of them without a word
    **{f"{kind} cut at {part}": (cut(kind, part), "truncated.*fetch it again") for kind in ("wav", "rifx", "rf64", "aiff", "flac") for part in (0.1, 0.5, 0.99)},
    **{f"ogg cut at {part}": (cut("ogg", part), "truncated.*fetch it again") for part in (0.6, 0.8, 0.999)},
    **{f"mp3 cut at {part}": (cut("mp3", part), "truncated.*fetch it again") for part in (0.3, 0.5, 0.75)},
    **{f"{kind} of {n} bytes": (SOUNDS[kind][:n], "undecodable.*convert other formats") for kind in ("wav", "flac", "ogg", "mp3") for n in (1, 11, 26)},
    # headers that lie: channels, rate, depth
    "no channels": (riff(channels=0), "undecodable"),
    "1024 channels": (riff(bytes(2048*10), channels=1024), Wave(10, 0)),
    "65535 channels": (riff(channels=65535), "undecodable"),
    "0 Hz": (riff(rate=0), "undecodable"),
    "1 Hz": (riff(rate=1), "implausible sample rate: 1 Hz.*correct its header"),
    "2147483647 Hz": (riff(rate=2**31 - 1), "implausible sample rate: 2147483647 Hz.*correct its header"),
    "4294967295 Hz": (riff(rate=2**32 - 1), "undecodable"),
    "96 kHz": (riff(rate=96000), Wave(167, 0)),
    "44101 Hz": (riff(rate=44101), Wave(363, 0)),        # its table of filters would take 5.6 GB
    "999983 Hz": (riff(rate=999983), Wave(17, 0)),
    "1009 Hz": (riff(rate=1009), Wave(15858, 0)),
    "0 bits": (riff(bits=0), "undecodable"),
    "7 bits": (riff(b"\xff"*50, bits=7), Wave(50)),
    "8 bits": (riff(b"\xff"*50, bits=8), Wave(50, 127/128)),
    "24 bits": (riff(b"\xff\xff\x7f"*50, bits=24), Wave(50, 1 - 2**-23)),
    "32 bits": (riff(b"\xff\xff\xff\x7f"*50, bits=32), Wave(50, 1)),
    "64-bit float": (floats(0.25, -0.5, bits=64), Wave(1000, 0.5)),
    "A-law": (riff(bytes(50), bits=8, codec=6), Wave(50)),
    "mu-law": (riff(bytes(50), bits=8, codec=7), Wave(50)),
    "ADPCM without its fields": (riff(bits=4, codec=2), "undecodable"),
    "unknown codec": (riff(codec=0x1234), "undecodable"),
    # headers that lie: sizes
    "samples announced, none there": (riff(b"", size=10**6), "truncated: 1000000 bytes"),
    "a gigabyte announced": (riff(size=10**9), "truncated: 999998000 bytes"),
    "open end, 0xFFFFFFFF": (riff(size=2**32 - 1), Wave(1000, 0)),
    "less announced than there": (riff(size=1000), Wave(500, 0)),                # the header is the promise; what follows is not sound
    "nothing announced": (riff(size=0), "empty: the file has no samples"),
    "odd number of bytes": (riff(bytes(2001)), Wave(1000, 0)),
    "chunks before the samples": (riff(before=b"LIST" + struct.pack("<I", 3) + b"abc\0"), Wave(1000, 0)),
    "bytes after the samples": (riff(after=os.urandom(999)), Wave(1000, 0)),
    "a chunk before the samples that announces 4 GB": (riff(before=b"junk\xff\xff\xff\xff"), "undecodable|truncated"),
    "200 000 empty chunks": (riff(before=b"junk\0\0\0\0"*200_000), "undecodable"),
    "no chunks": (b"RIFF\4\0\0\0WAVE", "undecodable"),
    "RF64 whose long size is 2^63": (spoil(SOUNDS["rf64"], SOUNDS["rf64"].index(b"ds64") + 16, b"\xff"*7 + b"\x7f"), "truncated|undecodable"),
    "FLAC announces 2^36 samples": (spoil(FLAC, 21, bytes([FLAC[21] | 15]) + b"\xff"*4), "too long: .* 68719476735 samples.*read it with stream_wave, or raise max_samples"),
    "FLAC announces one more": (spoil(FLAC, 22, struct.pack(">I", HALF + 1)), "truncated"),
    "FLAC announces fewer": (spoil(FLAC, 22, struct.pack(">I", 100)), Wave(100)),
    "FLAC announces no length": (spoil(FLAC, 21, bytes([FLAC[21] & 240]) + bytes(4)), "declares no length.*encode it again"),
    "FLAC of 0 Hz": (spoil(FLAC, 18, bytes([0, 0, FLAC[20] & 15])), "undecodable"),
    "FLAC with a wrong block": (spoil(FLAC, len(FLAC)//2, b"\xff"*8), "damaged|truncated"),
    "FLAC behind an ID3 tag": (b"ID3\4\0\0\0\0\0\x0a" + bytes(10) + FLAC, Wave(HALF)),
    "WAV behind an ID3 tag": (b"ID3\4\0\0\0\0\0\x0a" + bytes(10) + cut("wav", 0.5), "undecodable"),
    "AIFF of NaN Hz": (spoil(AIFF, AT["aiff"] + 16, b"\x7f\xff" + b"\xff"*8), "undecodable|implausible"),
    "AIFF announces 2^32-1 frames": (spoil(AIFF, AT["aiff"] + 10, b"\xff"*4), Wave(HALF)),         # the size of the samples' chunk decides
    "OGG twice": (OGG*2, f"chained: a second OGG stream begins at byte {len(OGG)}.*encode it again"),
    "OGG with one bit changed in its last page": (spoil(LONG, len(LONG) - 9, bytes([LONG[-9] ^ 1])), f"damaged: page {len(PAGES) - 1} of the OGG stream is altered.*fetch it again"),
    "OGG with one bit changed in its first page of sound": (spoil(LONG, PAGES[2] + 99, bytes([LONG[PAGES[2] + 99] ^ 1])), "damaged: page 2 of the OGG stream is altered"),
    "OGG without its first page of sound": (LONG[:PAGES[2]] + LONG[PAGES[3]:], "damaged: page 3 of the OGG stream is altered, or one before it is missing"),
    "OGG with junk between two pages": (LONG[:PAGES[3]] + b"junk" + LONG[PAGES[3]:], f"damaged: no page of the OGG stream begins at byte {PAGES[3]}"),
    "OGG without its last page": (LONG[:PAGES[-1]], "truncated: the OGG stream stops before its last page"),
    "OGG before a tag": (LONG + b"TAG" + bytes(125), Wave(3*RATE)),
    "OGG without its first page": (LONG[PAGES[1]:], "undecodable"),
    "MP3 behind a tag of 1 kB": (b"ID3\4\0\0\0\0\x08\0" + bytes(1024) + MP3, Wave(HALF)),
    "MP3 behind a tag that announces 256 MB": (b"ID3\4\0\0\x7f\x7f\x7f\x7f" + MP3, "undecodable"),
    "a tag and no MP3": (b"ID3\4\0\0\0\0\x08\0" + bytes(1024), "undecodable"),
    "MP3 behind junk": (bytes(range(256)) + MP3, "undecodable"),
    "MP3 announces 2^31-1 frames": (spoil(MP3, AT["mp3"] + 8, b"\x7f\xff\xff\xff"), "declares no length|too long|truncated"),
    "MP3 twice": (MP3*2, Wave(HALF)),                                            # its header announces the first half
    # samples
    "NaN": (floats(0, np.nan), "non-finite: 500 of 1000 samples.*export it again"),
    "infinite": (floats(0, np.inf, -np.inf, 0), "non-finite: 1000 of 2000"),
    "NaN in one of two channels": (floats(0, np.nan, channels=2), "non-finite: 500 of 500"),
    "64-bit floats beyond 32 bits": (floats(1e300, bits=64), "non-finite"),
    "largest floats": (floats(3e38, 3e38, channels=2), r"implausible level: its peak is 3.0e\+38.*scale it"),
    "floats at the scale of 32-bit integers": (floats(-2.0**31), Wave(500, 2.0**31)),
    "denormal floats": (floats(1e-42), Wave(500, 1e-42)),
    "DC": (floats(0.5), Wave(500, 0.5)),
    "clipping": (encode(np.clip(5*np.sin(np.arange(RATE)), -1, 1), "WAV"), Wave(RATE, 1)),
    "float beyond full scale": (floats(3, -3), Wave(1000, 3)),
    "silence": (riff(), Wave(1000, 0)),
    "two channels that cancel": (floats(0.5, -0.5, channels=2), Wave(500, 0)),
    "one sample": (riff(b"\0\x40"), Wave(1, 0.5)),
    "no samples": (encode(np.zeros((0, 2)), "WAV"), "empty: the file has no samples"),
    # something else
    "empty": (b"", "empty: the file has 0 bytes.*fetch it again"),
    "zeros": (bytes(5000), "undecodable"),
    "text": (b"not a sound", "undecodable"),
    "a web page": (b"<!DOCTYPE html><title>404</title>"*50, "undecodable"),
    "a picture": (picture(), "undecodable"),
    "a zip": (b"PK\3\4" + bytes(500), "undecodable"),
    "0xFF only": (b"\xff"*5000, "undecodable"),
    "Sun AU": (encode(np.zeros(99), "AU"), "undecodable.*convert other formats"),          # half of one could not be told from a whole
    "Wave64": (encode(np.zeros(99), "W64"), "undecodable.*convert other formats"),
    "8SVX": (encode(np.zeros(99), "SVX"), "undecodable.*convert other formats"),
    "MATLAB": (encode(np.zeros(99), "MAT5"), "undecodable.*convert other formats"),
}


@pytest.fixture(scope="module")
def tiny() -> AudioClassifier: return AudioClassifier(["low", "high"], width=0.02).eval()


def judge(path: Path, outcome: Wave | str, model: AudioClassifier | None = None) -> None:
    "Load a file, and compare what comes of it with the table"
    if isinstance(outcome, str):
        with bounded(), pytest.raises(AudioError, match=outcome) as e: load_wave(path)
        text, name = one_line(e.value), os.fspath(path)
        assert e.value.path == path and text.startswith(name if name.isprintable() else repr(name)) and text.endswith(e.value.reason)
        return
    with bounded(): wave = load_wave(path)
    assert wave.dtype == torch.float32 and wave.shape == (outcome.samples,) and wave.isfinite().all() and wave_length(path) == outcome.samples
    assert wave.abs().max() <= 1 + 1e-6 if outcome.peak is None else float(wave.abs().max()) == pytest.approx(outcome.peak, rel=1e-5)
    if model is not None:
        with bounded(), torch.no_grad(): assert model(wave[None]).isfinite().all()


@pytest.mark.parametrize("case", AUDIO)
def test_sound(tmp_path, tiny, case):
    content, outcome = AUDIO[case]
    (tmp_path/"a.wav").write_bytes(content)
    judge(tmp_path/"a.wav", outcome, tiny)


NAMES = {   # the name says nothing about the content, and may hold anything but a slash and a zero byte
    "another suffix": "a.mp3", "a suffix for raw samples": "a.raw", "no suffix": "a", "hidden": ".wav", "a line break": "a\nb.wav", "quotes": "a'b\"c`d.wav", "HTML": "<img src=x onerror=alert(1)>.wav",
    "a terminal's escape": "\x1b[2J.wav", "bytes that are no text": os.fsdecode(b"\xff\xfe.wav"), "right to left": "\u202egnp.wav", "shell": "; rm -rf $HOME | cat &.wav", "a pattern": "*[!.]?.wav",
    "spaces": "  .wav", "a dash": "-rf.wav", "255 bytes": "a"*251 + ".wav",
}


@pytest.mark.parametrize("case", NAMES)
def test_names(tmp_path, case):
    path = tmp_path/NAMES[case]
    path.write_bytes(riff())
    judge(path, Wave(1000, 0))
    path.write_bytes(riff()[:1000])
    judge(path, "truncated")


def _socket(path: Path) -> None:
    old = os.getcwd()
    os.chdir(path.parent)       # a socket's path may have 108 bytes
    try: socket.socket(socket.AF_UNIX).bind(path.name)
    finally: os.chdir(old)


PLACES: dict[str, tuple[Callable[[Path], object], Wave | str]] = {
    "nothing": (lambda p: None, "missing: there is no such file; check its name"),
    "a folder": (lambda p: p.mkdir(), "is a directory.*name a file in it"),
    "a pipe that nobody writes to": (os.mkfifo, "is a pipe.*save its sound to a file"),
    "a socket": (_socket, "is a socket.*save its sound to a file"),
    "a device without end": (lambda p: p.symlink_to("/dev/zero"), "is a pipe, socket or device"),
    "a link to itself": (lambda p: p.symlink_to(p), "a symbolic link that leads to itself"),
    "a ring of links": (lambda p: (p.symlink_to(p.with_name("b")), p.with_name("b").symlink_to(p)), "a symbolic link that leads to itself"),
    "a link to nothing": (lambda p: p.symlink_to("nowhere"), "missing"),
    "a link to a sound": (lambda p: (p.with_name("b").write_bytes(riff()), p.symlink_to("b")), Wave(1000, 0)),
}


@pytest.mark.parametrize("case", PLACES)
def test_places(tmp_path, case):
    make, outcome = PLACES[case]
    make(tmp_path/"a.wav")
    judge(tmp_path/"a.wav", outcome)


@pytest.mark.parametrize("name, outcome", [("b.wav/a.wav", "missing: there is no such folder"), ("a"*300 + ".wav", "missing: its name is longer"), ("a\0.wav", "missing: no file name holds a zero byte")])
def test_impossible_names(tmp_path, name, outcome):
    (tmp_path/"b.wav").write_bytes(riff())
    judge(tmp_path/name, outcome)


def test_a_file_of_somebody_else(tmp_path):
    path = tmp_path/"a.wav"
    path.write_bytes(riff())
    path.chmod(0)
    user = os.geteuid()
    if not user: os.seteuid(65534)       # root may read anything
    try: judge(path, "unreadable: no permission; ask its owner")
    finally: os.seteuid(user)


def test_an_hour_of_silence(tmp_path):
    "115 MB of which the disk holds one block; in memory, the wave and little else"
    path, n = tmp_path/"hour.wav", 3600*RATE
    path.write_bytes(riff(b"", size=2*n))
    os.truncate(path, path.stat().st_size + 2*n)
    assert path.stat().st_blocks < 1000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    judge(path, Wave(n, 0))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 700_000     # kB: three times the wave
    with pytest.raises(AudioError, match="too long: its header declares 3600 s"), bounded(1): load_wave(path, max_samples=n - 1)


def test_a_week_of_silence_is_refused_at_once(tmp_path):
    path, size = tmp_path/"week.wav", 2*7*24*3600*RATE
    ds64 = b"ds64" + struct.pack("<IQQQI", 28, size, size, size//2, 0)
    path.write_bytes(b"RF64\xff\xff\xff\xffWAVE" + ds64 + riff(b"", size=2**32 - 1)[12:])
    os.truncate(path, path.stat().st_size + size)
    with bounded(1), pytest.raises(AudioError, match="too long: its header declares 604800 s"): load_wave(path)


def test_a_small_file_of_a_long_silence(tmp_path):
    "FLAC packs 20 minutes into a few kB: the length counts, not the size"
    with sf.SoundFile(tmp_path/"a.flac", "w", RATE, 1) as file:
        for _ in range(20): file.write(np.zeros(60*RATE, np.float32))
    assert (tmp_path/"a.flac").stat().st_size < 2**18
    judge(tmp_path/"a.flac", Wave(1200*RATE, 0))
    with bounded(1), pytest.raises(AudioError, match="too long"): load_wave(tmp_path/"a.flac", max_samples=10**6)


def edits(base: bytes) -> st.SearchStrategy[bytes]:
    "Copies of a file with bytes changed (the header more often than the rest), a stretch removed or repeated, the end cut off"
    places = st.one_of(st.integers(0, min(200, len(base) - 1)), st.integers(0, len(base) - 1))
    def apply(changes, move, stop):
        out = bytearray(base)
        for at, byte in changes: out[at] = byte
        start, length, times = move
        return bytes(out[:start] + out[start:start + length]*times + out[start + length:])[:stop]
    return st.builds(apply, st.lists(st.tuples(places, st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]) | st.integers(0, 255)), max_size=8),
                     st.tuples(places, st.integers(0, 64), st.sampled_from([1, 1, 1, 0, 2, 40])), st.none() | st.integers(0, len(base)))


@many
@given(content=st.sampled_from([*SOUNDS.values(), riff(), floats(0.5)]).flatmap(edits))
def test_any_damage_to_a_sound(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp()/"damaged"
    path.write_bytes(content)
    with bounded():
        try: wave = load_wave(path)
        except AudioError as e: assert path.name in one_line(e)
        else: assert wave.dtype == torch.float32 and wave.ndim == 1 and len(wave) and wave.isfinite().all() and wave.abs().max() <= 2**32


# ---- images and tables

@pytest.fixture
def images(tmp_path) -> Path: return make_images(tmp_path/"images")


def put(name: str, content: bytes) -> Callable[[Path], None]:
    "A damage: this content under this name, in place of any packed file of that name"
    def damage(root: Path) -> None:
        for end in (".gz", ".xz"): (root/f"{name.removesuffix('.gz').removesuffix('.xz')}{end}").unlink(missing_ok=True)
        (root/name).unlink(missing_ok=True)
        (root/name).write_bytes(content)
    return damage


def instead(name: str, make: Callable[[Path], object]) -> Callable[[Path], None]:
    "A damage: something that is no file under this name"
    def damage(root: Path) -> None:
        (root/name).unlink()
        make(root/name)
    return damage


def row(old: str, new: str) -> Callable[[Path], None]:
    "A damage to the table of crops"
    return lambda root: (root/"crops.csv").write_bytes((root/"crops.csv").read_bytes().replace(old.encode(), new.encode()))


def png(width: int, height: int, *chunks: bytes) -> bytes:
    "A PNG file of that announced size"
    chunk = lambda name, data: struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)) + b"".join(chunk(c[:4], c[4:]) for c in chunks) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")


PIXELS, LABELS, CLASSES = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte", (np.arange(12) % 10).astype(np.uint8)
GREY = np.zeros((12, 28, 28), np.uint8)
HEADER = "{'descr': %s, 'fortran_order': False, 'shape': %s}"

IMAGES: dict[str, tuple[str, Callable[[Path], object], tuple[int, ...] | str]] = {   # set, damage, shape of its test pixels or a piece of the refusal
    "whole idx": ("mnist", lambda root: None, (12, 1, 28, 28)),
    "idx cut short": ("mnist", put(PIXELS, idx(GREY)[:-1]), "9407 bytes where 12 x 28 x 28 are announced; fetch it again"),
    "idx announces 2^32-1 images": ("mnist", put(PIXELS, spoil(idx(GREY), 4, b"\xff"*4)), "9408 bytes where 4294967295 x 28 x 28"),
    "idx whose sizes multiply to 2^64": ("mnist", put(PIXELS, b"\0\0\x08\4" + b"\0\1\0\0"*4), "0 bytes where 65536 x 65536 x 65536 x 65536"),
    "idx of floats": ("mnist", put(PIXELS, spoil(idx(GREY), 2, b"\x0d")), "not an IDX file of unsigned bytes"),
    "idx with 200 axes": ("mnist", put(PIXELS, b"\0\0\x08\xc8" + b"\0\0\0\1"*200 + b"\0"), "not an IDX file .* up to 4 axes"),
    "idx of one axis": ("mnist", put(PIXELS, idx(GREY.ravel())), r"shape \[9408\], expected \[n, 28, 28\]"),
    "idx without images": ("mnist", put(PIXELS, idx(GREY[:0])), "no images"),
    "idx without pixels": ("mnist", put(PIXELS, idx(GREY[:, :0])), "images without pixels"),
    "fewer labels than images": ("mnist", put(LABELS, idx(CLASSES[:5])), "5 labels for 12 images"),
    "a label that is no class": ("mnist", put(LABELS, idx(CLASSES + 1)), "label 10 with 10 classes"),
    "labels of two axes": ("mnist", put(LABELS, idx(CLASSES[None])), r"labels have shape \[1, 12\]"),
    "gz cut short": ("mnist", put(LABELS + ".gz", gzip.compress(idx(CLASSES))[:-9]), "damaged.*fetch it again"),
    "gz with a wrong checksum": ("mnist", put(LABELS + ".gz", spoil(gzip.compress(idx(CLASSES)), 40, b"\xff")), "damaged.*fetch it again"),
    "gz in two members": ("mnist", put(LABELS + ".gz", gzip.compress(idx(CLASSES)[:9]) + gzip.compress(idx(CLASSES)[9:])), (12, 1, 28, 28)),
    "gz of 20 MB of zeros": ("mnist", put(LABELS + ".gz", gzip.compress(bytes(20_000_000))), "unpacks to more than 16777216 bytes"),
    "xz of 20 MB of zeros": ("mnist", put(PIXELS + ".xz", lzma.compress(bytes(20_000_000))), "unpacks to more than 16777216 bytes"),
    "xz that wants a gigabyte to unpack": ("mnist", put(PIXELS + ".xz", greedy_xz(idx(GREY))), "damaged .Memory usage limit exceeded.*fetch it again"),
    "no xz at all": ("mnist", put(PIXELS + ".xz", b"<html>404</html>"), "damaged.*fetch it again"),
    "a sparse file of a terabyte": ("mnist", lambda root: (put(PIXELS, b"\0")(root), os.truncate(root/PIXELS, 2**40)), "1099511627776 bytes, at most 16777216 are read"),
    "a pipe for labels": ("mnist", instead(LABELS + ".gz", os.mkfifo), "missing"),
    "a folder for labels": ("mnist", instead(LABELS + ".gz", Path.mkdir), "missing"),
    "labels that link to themselves": ("mnist", instead(LABELS + ".gz", lambda p: p.symlink_to(p)), "missing"),
    "sums that do not match": ("mnist", put("SHA256SUMS", b"0"*64 + b"  " + LABELS.encode() + b".gz\n"), "not the file that SHA256SUMS lists; fetch it again"),
    "sums that are none": ("mnist", put("SHA256SUMS", b"hello\n\xff\n"), "every line should be a digest and a name"),
    "a pipe for sums": ("mnist", lambda root: os.mkfifo(root/"SHA256SUMS"), "not a regular file"),
    "whole npy": ("quickdraw", lambda root: None, (12, 1, 28, 28)),
    "npy cut short": ("quickdraw", put("test_images.npy", npy(GREY)[:-1]), "not a .npy file of numbers"),
    "npy announces a petabyte": ("quickdraw", put("test_images.npy", npy_header(HEADER % ("'|u1'", f"({10**15}, 1, 1)"), bytes(99))), "not a .npy file of numbers"),
    "npy whose sizes multiply to 2^64": ("quickdraw", put("test_images.npy", npy_header(HEADER % ("'|u1'", "(4294967296, 4294967296, 1)"))), "not a .npy file of numbers|no images|without pixels|expected"),
    "npy of a negative size": ("quickdraw", put("test_images.npy", npy_header(HEADER % ("'|u1'", "(-1, 28, 28)"), bytes(784))), "not a .npy file of numbers|expected"),
    "npy with a deep header": ("quickdraw", put("test_images.npy", npy_header("("*9000)), "not a .npy file of numbers"),
    "npy with a program as header": ("quickdraw", put("test_images.npy", npy_header("__import__('os').abort()")), "not a .npy file of numbers"),
    "npy of structures": ("quickdraw", put("test_images.npy", npy(np.zeros((12, 28, 28), "u1,u1"))), "expected uint8"),
    "npy of floats": ("quickdraw", put("test_images.npy", npy(GREY/255)), "pixels are float64"),
    "npz": ("quickdraw", put("test_images.npy", b"PK\3\4" + bytes(200)), "not a .npy file of numbers"),
    "labels of floats": ("quickdraw", put("test_labels.npy", npy(CLASSES + 0.5)), "labels are float64, expected whole numbers"),
    "labels of NaN": ("quickdraw", put("test_labels.npy", npy(np.full(12, np.nan))), "labels are float64, expected whole numbers"),
    "labels of text": ("quickdraw", put("test_labels.npy", npy(np.array(["cat"]*12))), "labels are <U3, expected whole numbers"),
    "labels of 2^64-1": ("quickdraw", put("test_labels.npy", npy(np.full(12, 2**64 - 1, np.uint64))), "label -1 with 10 classes"),
    "class names that repeat": ("quickdraw", put("classes.txt", b"cat\n"*10), "class names repeat"),
    "class names that are no text": ("quickdraw", put("classes.txt", b"\n".join(bytes([200 + i]) for i in range(10))), (12, 1, 28, 28)),
    "class names that are HTML": ("quickdraw", put("classes.txt", b"\n".join(b"<script>alert(%d)</script>" % i for i in range(10))), (12, 1, 28, 28)),
    "whole crops": ("ccp_crops", lambda root: None, (4, 3, 96, 96)),
    "picture cut short": ("ccp_crops", put("test/1.jpg", picture()[:300]), "1.jpg: not a picture"),
    "mask cut short": ("ccp_crops", put("test/1.png", picture("1", "PNG")[:60]), "1.png: not a picture"),
    "picture of 60000 x 60000": ("ccp_crops", put("test/1.jpg", png(60000, 60000)), "1.jpg: not a picture .DecompressionBombError"),
    "picture of 5000 x 5000": ("ccp_crops", put("test/1.jpg", png(5000, 5000)), "5000 x 5000 pixels, at most 16777216.*cut a crop"),
    "picture of no width": ("ccp_crops", put("test/1.jpg", png(0, 96)), "1.jpg: not a picture"),
    "picture with 100 MB of text in 100 kB": ("ccp_crops", put("test/1.jpg", png(96, 96, b"zTXtkey\0\0" + zlib.compress(bytes(10**8)))), "1.jpg: not a picture"),
    "GIF called jpg": ("ccp_crops", put("test/1.jpg", picture("L", "GIF")), "1.jpg: not a picture"),
    "PostScript called jpg": ("ccp_crops", put("test/1.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 96 96\n(harm) (w) file\n"), "1.jpg: not a picture"),
    "PNG called jpg": ("ccp_crops", put("test/1.jpg", picture(format="PNG")), (4, 3, 96, 96)),
    "CMYK": ("ccp_crops", put("test/1.jpg", picture("CMYK")), (4, 3, 96, 96)),
    "palette": ("ccp_crops", put("test/1.jpg", picture("P", "PNG")), (4, 3, 96, 96)),
    "16 bits": ("ccp_crops", put("test/1.jpg", picture("I;16", "PNG")), (4, 3, 96, 96)),
    "one pixel": ("ccp_crops", put("test/1.jpg", picture(size=(1, 1))), "different sizes"),
    "a text for a picture": ("ccp_crops", put("test/1.jpg", b"no picture"), "1.jpg: not a picture"),
    "a picture outside the folder": ("ccp_crops", row("test/1.jpg", "../../secret.jpg"), "names '../../secret.jpg', which is outside this folder; refused"),
    "a picture at the root": ("ccp_crops", row("test/1.jpg", "/etc/passwd"), "names '/etc/passwd', which is outside this folder; refused"),
    "a picture with a zero byte": ("ccp_crops", row("test/1.jpg", "test/\0.jpg"), "missing|not a csv|outside"),
    "a picture with a line break": ("ccp_crops", row("test/1.jpg", '"test/1\n.jpg"'), r"test/1\\n.jpg: missing"),
    "a picture with a long name": ("ccp_crops", row("test/1.jpg", "a"*5000), r"cannot be read|missing"),
    "a label left out": ("ccp_crops", row("bag", ""), "row 0 has no label"),
    "a label called NaN": ("ccp_crops", row("bag", "NaN"), (4, 3, 96, 96)),
    "a cell of a megabyte": ("ccp_crops", row(",test,", "," + "x"*10**6 + ","), "split 'xxx"),
    "a table that is no text": ("ccp_crops", put("crops.csv", b"\xff\xfe\0\1"*99), "crops.csv: not a csv|crops.csv: columns"),
    "a table of quotes": ("ccp_crops", put("crops.csv", b'"'*9999), "crops.csv: not a csv|crops.csv: columns"),
    "an empty table": ("ccp_crops", put("crops.csv", b""), "crops.csv: not a csv"),
    "a pipe for a table": ("ccp_crops", instead("crops.csv", os.mkfifo), "crops.csv: missing, or not a regular file"),
}


@pytest.mark.parametrize("case", IMAGES)
def test_image(images, monkeypatch, case):
    monkeypatch.setattr(lmac_piq.data, "_LARGEST", 2**24)
    name, damage, outcome = IMAGES[case]
    damage(images/name)
    if isinstance(outcome, str):
        with bounded(), pytest.raises(DataError, match=outcome) as e: image_set(name, "test", images/name)
        assert name in one_line(e.value)
    else:
        with bounded(): found = image_set(name, "test", images/name)
        assert found.pixels.shape == outcome and found.pixels.dtype == np.uint8 and not found.faults()


@many
@given(content=st.sampled_from([idx(GREY[:2, :4, :4]), idx(CLASSES)]).flatmap(edits))
def test_any_damage_to_idx(content):
    try: array = read_idx(content)
    except DataError as e: one_line(e)
    else: assert array.dtype == np.uint8 and array.size <= len(content)


@many
@given(files=st.tuples(edits(npy(GREY[:2, :4, :4])), edits(npy(CLASSES[:2])), edits(picture(size=(8, 8))), edits(picture("1", "PNG", (8, 8)))))
def test_any_damage_to_arrays_and_pictures(tmp_path_factory, files):
    root = tmp_path_factory.getbasetemp()/"any"
    root.mkdir(exist_ok=True)
    for name, content in zip(("test_images.npy", "test_labels.npy", "a.jpg", "a.png"), files): (root/name).write_bytes(content)
    (root/"classes.txt").write_text("0\n1\n2")
    (root/"crops.csv").write_text("file,mask,split,label,photo\na.jpg,a.png,test,bag,1\n")
    for name in ("quickdraw", "ccp_crops"):
        with bounded():
            try: found = image_set(name, "test", root)
            except DataError as e: one_line(e)
            else: assert not found.faults() and len(found) <= 2


TABLE = ",".join(ESC50_COLUMNS) + "\n" + "".join(f"{f}-{f}{c}-A-{c}.wav,{f},{c},{'cd'[c]},False,{f}{c},A\n" for f in range(1, 6) for c in range(2))


@many
@given(content=edits(TABLE.encode()))
def test_any_damage_to_a_table(tmp_path_factory, content):
    root = tmp_path_factory.getbasetemp()/"table"
    root.mkdir(exist_ok=True)
    (root/"esc50.csv").write_bytes(content)
    with bounded():
        try: table = esc50_table(root)
        except DataError as e: one_line(e)
        else: assert sorted(set(table.target)) == [0, 1] and len(table) == 10 and table.category.map(type).eq(str).all()


def test_a_folder_of_sounds_with_anything_in_it(tmp_path):
    "A search ends, and names what cannot be read"
    noise, esc = tmp_path/"noise", tmp_path/"esc50"
    for folder in (noise, esc/"audio"): folder.mkdir(parents=True)
    (noise/"a.wav").write_bytes(riff())
    (noise/"loop").symlink_to(noise)
    (esc/"esc50.csv").write_text(TABLE)
    with bounded(): assert [file.name for file in noise_pack(noise)] == ["a"]
    for k, (make, words) in enumerate([(os.mkfifo, "pipe"), (Path.mkdir, "directory"), (lambda p: p.symlink_to(p), "leads to itself")]):
        make(noise/"b.wav")
        with bounded(), pytest.raises(AudioError, match=words): noise_pack(noise)
        (noise/"b.wav").rename(noise/f"b{k}")
        make(esc/f"audio/1-1{k}-A-{k}.wav")
    with bounded(), pytest.raises(DataError, match="10 of 10 clips are missing"): esc50_files(esc, esc50_table(esc))


# ---- saved models, checkpoints, caches

def config(**changes) -> Callable[[Path], None]:
    "A damage: entries of config.json"
    return lambda folder: (folder/"config.json").write_text(json.dumps(json.loads((folder/"config.json").read_text()) | changes))


def raw_config(content: bytes) -> Callable[[Path], object]: return lambda folder: (folder/"config.json").write_bytes(content)


def without(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        found = json.loads((folder/"config.json").read_text())
        del found[name]
        (folder/"config.json").write_text(json.dumps(found))
    return damage


def weights(change: Callable[[dict], object]) -> Callable[[Path], None]:
    "A damage: tensors of model.safetensors"
    def damage(folder: Path) -> None:
        found = load_file(folder/"model.safetensors")
        change(found)
        save_file(found, folder/"model.safetensors")
    return damage


def raw_weights(content: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    return lambda folder: (folder/"model.safetensors").write_bytes(content((folder/"model.safetensors").read_bytes()))


W, NOT, DAMAGED = "network.head.weight", "config.json does not describe what was saved.*save or fetch it again", "is damaged.*save or fetch it again"
TENSOR = dict(dtype="F32", shape=[2], data_offsets=[0, 8])

MODELS: dict[str, tuple[Callable[[Path], object], str]] = {
    "config.json is a list": (raw_config(b"[1, 2]"), "it holds a list, not names and values"),
    "config.json is a number": (raw_config(b"1e999"), "it holds a float"),
    "config.json is null": (raw_config(b"null"), "it holds a NoneType"),
    "config.json is empty": (raw_config(b""), DAMAGED),
    "config.json is no text": (raw_config(b"\xff\xfe\0"), DAMAGED),
    "config.json nests 100 000 deep": (raw_config(b"["*100_000), DAMAGED),
    "config.json nests objects": (raw_config(b'{"a":'*100_000), DAMAGED),
    "config.json holds a number of 100 000 digits": (raw_config(b'{"kind": ' + b"9"*100_000 + b"}"), DAMAGED),
    "config.json has 32 MB": (lambda folder: os.truncate(folder/"config.json", 2**25), "is damaged: 33554432 bytes, at most 16777216 are read"),
    "config.json is a pipe": (instead("config.json", os.mkfifo), "has no config.json"),
    "config.json is a folder": (instead("config.json", Path.mkdir), "has no config.json"),
    "config.json links to itself": (instead("config.json", lambda p: p.symlink_to(p)), "has no config.json"),
    "another kind": (config(kind="LMAC"), "holds a LMAC, not a AudioClassifier"),
    "a kind of a megabyte": (config(kind="x"*10**6), "holds a x{40}, not a AudioClassifier"),
    "a kind that is a list": (config(kind=[1]), r"holds a \[1\], not a AudioClassifier"),
    "no fingerprint": (without("fingerprint"), "do not belong together"),
    "no classes": (without("classes"), NOT),
    "classes that are a number": (config(classes=3), "its classes are not all names"),
    "classes that are a text": (config(classes="ab"), "its classes are not all names"),
    "classes that are numbers": (config(classes=[1, 2]), "its classes are not all names"),
    "one class more": (config(classes=["a", "b", "c"]), "another architecture"),
    "other names": (config(classes=["a", "<b>"]), "do not belong together"),
    "an unknown entry": (config(colour="red"), NOT),
    "an entry called self": (config(self=1), NOT),
    "width is a text": (config(width="wide"), NOT),
    "width is a list": (config(width=[1]), NOT),
    "width is NaN": (config(width=float("nan")), NOT),
    "width is infinite": (config(width=float("inf")), NOT),
    "width is 10^9": (config(width=1e9), NOT + "|far more numbers"),
    "width is 4": (config(width=4.0), NOT),                                   # 1.2 billion weights
    "width is negative": (config(width=-1), "another architecture"),
    "10^9 mel bands": (config(n_mels=10**9), NOT),
    "-1 mel bands": (config(n_mels=-1), NOT),
    "mel bands in words": (config(n_mels="many"), NOT),
    "10^9 frames at least": (config(network="conv2d", pool=10**9), NOT + "|pool"),
    "unknown network": (config(network="__class__"), NOT),
    "network is a list": (config(network=[]), NOT),
    "level is nothing": (config(level=None), NOT),
    "0 Hz": (config(sample_rate=0), "do not belong together|" + NOT),
    "10^300 Hz": (config(sample_rate=1e300), "do not belong together|" + NOT),
    "no model.safetensors": (lambda folder: (folder/"model.safetensors").unlink(), "has no model.safetensors"),
    "model.safetensors is a pipe": (instead("model.safetensors", os.mkfifo), "has no model.safetensors"),
    "model.safetensors is empty": (raw_weights(lambda b: b""), DAMAGED),
    "model.safetensors cut short": (raw_weights(lambda b: b[:-1]), DAMAGED),
    "model.safetensors cut in its header": (raw_weights(lambda b: b[:100]), DAMAGED),
    "a header of 2^64-1 bytes": (raw_weights(lambda b: b"\xff"*8 + b[8:]), DAMAGED),
    "a header of 0 bytes": (raw_weights(lambda b: bytes(8) + b[8:]), DAMAGED),
    "a header one byte short": (raw_weights(lambda b: struct.pack("<Q", struct.unpack("<Q", b[:8])[0] - 1) + b[8:]), DAMAGED),
    "a header that nests": (raw_weights(lambda b: safetensors(b'{"a":'*10_000)), DAMAGED),
    "a header that is a list": (raw_weights(lambda b: safetensors([])), DAMAGED),
    "a tensor beyond the file": (raw_weights(lambda b: safetensors({"a": TENSOR | dict(data_offsets=[0, 10**12])}, bytes(8))), DAMAGED),
    "a tensor larger than its bytes": (raw_weights(lambda b: safetensors({"a": TENSOR | dict(shape=[10**12])}, bytes(8))), DAMAGED),
    "a tensor whose sizes multiply to 2^64": (raw_weights(lambda b: safetensors({"a": TENSOR | dict(shape=[2**32, 2**32])}, bytes(8))), DAMAGED),
    "a tensor that ends before it begins": (raw_weights(lambda b: safetensors({"a": TENSOR | dict(data_offsets=[8, 0])}, bytes(8))), DAMAGED),
    "two tensors in one place": (raw_weights(lambda b: safetensors({"a": TENSOR, "b": TENSOR}, bytes(8))), DAMAGED),
    "a tensor of no known type": (raw_weights(lambda b: safetensors({"a": TENSOR | dict(dtype="Z9")}, bytes(8))), DAMAGED),
    "other tensors": (raw_weights(lambda b: safetensors({"a": TENSOR}, bytes(8))), "another architecture: .* do not match by name"),
    "a tensor missing": (weights(lambda w: w.pop(W)), f"another architecture: 1 tensors do not match by name, e.g. {W}"),
    "a tensor too many": (weights(lambda w: w.update({"x"*500: w[W].clone()})), "another architecture: 1 tensors do not match by name, e.g. x{80}$"),
    "a tensor of another shape": (weights(lambda w: w.update({W: w[W][:1].clone()})), "another architecture"),
    "a tensor of whole numbers": (weights(lambda w: w.update({W: w[W].int()})), r"another architecture: network.head.weight is torch.int32 there, torch.float32 here"),
    "a NaN": (weights(lambda w: w[W].view(-1)[0].fill_(float("nan"))), "network.head.weight holds NaN or infinite numbers; take an earlier copy"),
    "one number changed": (weights(lambda w: w[W].view(-1)[0].add_(1)), "do not belong together"),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> dict[str, bytes]:
    folder = make_model(tmp_path_factory.mktemp("model"))
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def lay_out(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in files.items(): (folder/name).write_bytes(content)
    return folder


def test_the_model_itself_loads(tmp_path, saved):
    assert AudioClassifier.from_pretrained(lay_out(tmp_path/"model", saved)).classes == ["low", "high"]


@pytest.mark.parametrize("case", MODELS)
def test_saved_model(tmp_path, saved, case):
    damage, outcome = MODELS[case]
    folder = lay_out(tmp_path/"model", saved)
    damage(folder)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with bounded(), pytest.raises((ValueError, FileNotFoundError), match=outcome) as e: AudioClassifier.from_pretrained(folder)
    assert str(folder) in str(e.value) and len(str(e.value)) < 1000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000     # kB


@many
@given(data=st.data())
def test_any_damage_to_a_saved_model(tmp_path_factory, saved, data):
    name = data.draw(st.sampled_from(sorted(saved)))
    folder = lay_out(tmp_path_factory.getbasetemp()/"any model", saved | {name: data.draw(edits(saved[name]))})
    with bounded():
        try: model = AudioClassifier.from_pretrained(folder)
        except ValueError as e: assert str(folder) in str(e)
        else: assert all(w.isfinite().all() for w in model.state_dict().values())


@pytest.mark.parametrize("content", [b"", b"\x80", b"PK\3\4" + bytes(99), pickle.dumps([1]), pickle.dumps({"config": 3}), b"(" * 10_000, bytes(5000)])
def test_a_checkpoint_that_is_none(tmp_path, content):
    (tmp_path/"checkpoint.pt").write_bytes(content)
    with bounded(), pytest.raises(CheckpointError, match="checkpoint.pt is damaged .*: delete it to start this run again"): read_checkpoint(tmp_path/"checkpoint.pt", FitConfig())


@pytest.mark.parametrize("state", [3, [], {}, {"config": 1}, {"config": []}, torch.zeros(2)])
def test_a_checkpoint_of_something_else(tmp_path, state):
    torch.save(state, tmp_path/"checkpoint.pt")
    with bounded(), pytest.raises(CheckpointError, match="checkpoint.pt is damaged"): read_checkpoint(tmp_path/"checkpoint.pt", FitConfig())


def test_a_pipe_for_a_checkpoint(tmp_path):
    os.mkfifo(tmp_path/"checkpoint.pt")
    with bounded(), pytest.raises(CheckpointError, match="checkpoint.pt is damaged"): read_checkpoint(tmp_path/"checkpoint.pt", FitConfig())


def _cache(root: Path, name: str) -> Callable[[bytes], object]:
    (root/"a.wav").write_bytes(riff())
    def read(content: bytes) -> np.ndarray:
        wave_cache([root/"a.wav"], "0"*16, root, 1000, progress=False)
        (root/"waves"/("0"*16)/name).write_bytes(content)
        return wave_cache([root/"a.wav"], "0"*16, root, 1000, progress=False)
    return read


def _read(path: Path, read: Callable[[], object]) -> Callable[[bytes], object]: return lambda content: (path.write_bytes(content), read())[1]


READERS: dict[str, Callable[[Path], Callable[[bytes], object]]] = {   # folder -> what reads the bytes as this kind of file
    "sound": lambda root: _read(root/"a.wav", lambda: load_wave(root/"a.wav")),
    "checkpoint": lambda root: _read(root/"checkpoint.pt", lambda: read_checkpoint(root/"checkpoint.pt", FitConfig())),
    "model.safetensors": lambda root: _read(make_model(root)/"model.safetensors", lambda: AudioClassifier.from_pretrained(root)),
    "config.json": lambda root: _read(make_model(root)/"config.json", lambda: AudioClassifier.from_pretrained(root)),
    "idx": lambda root: _read(make_images(root)/"mnist/t10k-images-idx3-ubyte", lambda: image_set("mnist", "test", root/"mnist")),
    "pixels.npy": lambda root: _read(make_images(root)/"quickdraw/test_images.npy", lambda: image_set("quickdraw", "test", root/"quickdraw")),
    "labels.npy": lambda root: _read(make_images(root)/"quickdraw/test_labels.npy", lambda: image_set("quickdraw", "test", root/"quickdraw")),
    "picture": lambda root: _read(make_images(root)/"ccp_crops/test/0.jpg", lambda: image_set("ccp_crops", "test", root/"ccp_crops")),
    "table": lambda root: _read(make_images(root)/"ccp_crops/crops.csv", lambda: image_set("ccp_crops", "test", root/"ccp_crops")),
}
CACHES = ("waves.npy", "manifest.json")


@pytest.mark.parametrize("form", payloads(Path("x")))
@pytest.mark.parametrize("reader", READERS)
def test_a_payload_is_refused_and_never_run(tmp_path, reader, form):
    marker = tmp_path/"run"
    with bounded(), pytest.raises((ValueError, OSError, CheckpointError)) as e: READERS[reader](tmp_path)(payloads(marker)[form])
    assert str(tmp_path) in str(e.value) and not marker.exists()


@pytest.mark.parametrize("form", payloads(Path("x")))
@pytest.mark.parametrize("name", CACHES)
def test_a_payload_in_a_cache_is_replaced_and_never_run(tmp_path, name, form):
    marker = tmp_path/"run"
    with bounded(): waves = _cache(tmp_path, name)(payloads(marker)[form])
    assert waves.shape == (1, 1000) and waves.dtype == np.int16 and not waves.any() and not marker.exists()


@pytest.mark.parametrize("content", [b"", b"null", b"[]", b'{"sha256": 3}', b"["*100_000, b"\xff"])
@pytest.mark.parametrize("name", CACHES)
def test_a_damaged_cache_is_made_again(tmp_path, name, content):
    with bounded(): assert _cache(tmp_path, name)(content).shape == (1, 1000)


@pytest.mark.parametrize("make", [Path.touch, os.mkfifo, lambda p: p.symlink_to(p), lambda p: (p.with_name("other").mkdir(), p.symlink_to("other"))])
def test_something_else_in_the_place_of_a_cache(tmp_path, make):
    (tmp_path/"a.wav").write_bytes(riff())
    (tmp_path/"waves").mkdir()
    make(tmp_path/"waves"/("0"*16))
    with bounded(): assert wave_cache([tmp_path/"a.wav"], "0"*16, tmp_path, 1000, progress=False).shape == (1, 1000)


def test_the_payload_would_run(tmp_path):
    "Each wrapping does its harm where it is unpickled, so the tests above prove something"
    wrapped = payloads(tmp_path/"run")
    for form, content in wrapped.items():
        (tmp_path/"file").write_bytes(content)
        if "torch" in form: torch.load(tmp_path/"file", weights_only=False)
        elif form == "npz": np.load(tmp_path/"file", allow_pickle=True)["waves"]
        elif form == "npy": np.load(tmp_path/"file", allow_pickle=True)
        else: pickle.loads(content)
        assert (tmp_path/"run").is_dir(), form
        (tmp_path/"run").rmdir()


def test_the_tables_are_long_enough():
    assert len(AUDIO) + len(NAMES) + len(PLACES) >= 40 and len(IMAGES) >= 40 and len(MODELS) >= 40
