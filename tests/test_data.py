"""Data: downloads against a local server, the tables of ESC-50 and UrbanSound8K, the wave cache, noise and speech."""
import hashlib, multiprocessing, os, shutil, threading, zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np, pandas as pd, pytest, torch
from hypothesis import given, settings, strategies as st

from lmac_piq.audio import AudioError, load_wave, save_wave
from lmac_piq.data import (DATA_ENV, ESC50, ESC50_COLUMNS, ESC50_CSV_SHA256, RELATED_CLASSES, US8K_COLUMNS, DataError, NoiseFile, UrbanSound8K, batches, crop,
                           download, download_esc50, esc50_files, esc50_table, find, noise_pack, sha256_file, speech_pack,
                           split_files, unpack, wave_cache)

real = pytest.mark.skipif(not os.environ.get(DATA_ENV), reason=f"{DATA_ENV} is not set: no real data")
CONTENT = np.random.default_rng(0).bytes(400_000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()


# Downloading

@pytest.fixture
def server():
    "A file server with switches: `cut` bytes before it hangs up, `ranges` honoured or not, chunked without a length"
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        cut, ranges, chunked, log, content = None, True, False, [], CONTENT

        def log_message(self, *args): pass

        def do_GET(self):
            wanted = self.headers.get("Range")
            Handler.log.append(wanted)
            self.close_connection = True
            if self.path != "/file": return self.send_error(404)
            start = int(wanted[6:-1]) if wanted and Handler.ranges else 0
            if start >= len(Handler.content): return self.send_error(416)
            body = Handler.content[start:]
            self.send_response(206 if start else 200)
            if start: self.send_header("Content-Range", f"bytes {start}-{len(Handler.content) - 1}/{len(Handler.content)}")
            if Handler.chunked: self.send_header("Transfer-Encoding", "chunked")
            else: self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if Handler.chunked: self.wfile.write(b"%x\r\n" % len(body))
            self.wfile.write(body[:Handler.cut])
            if Handler.chunked and Handler.cut is None: self.wfile.write(b"\r\n0\r\n\r\n")

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    Handler.url = f"http://127.0.0.1:{http.server_port}/file"
    yield Handler
    http.shutdown()
    http.server_close()


def fetch(server, path, sha256=DIGEST, url=None): return download(url or server.url, path, sha256, progress=False, timeout=5)


def test_download_survives_two_interruptions(server, tmp_path):
    path = tmp_path / "deep" / "file.bin"
    server.cut = 150_000
    for reached in (150_000, 300_000):
        with pytest.raises(DataError, match=f"stopped at {reached} of 400000 bytes"): fetch(server, path)
        assert not path.exists() and path.with_name("file.bin.part").stat().st_size == reached
    assert fetch(server, path).read_bytes() == CONTENT
    assert server.log == [None, "bytes=150000-", "bytes=300000-"]
    assert not path.with_name("file.bin.part").exists()


def test_complete_file_is_not_fetched_again(server, tmp_path):
    for sha256 in (DIGEST, DIGEST, None): fetch(server, tmp_path / "file", sha256)
    assert server.log == [None]


def test_altered_file_is_fetched_again(server, tmp_path):
    (tmp_path / "file").write_bytes(b"something else")
    assert fetch(server, tmp_path / "file").read_bytes() == CONTENT


def test_server_without_ranges_starts_over(server, tmp_path):
    server.ranges = False
    (tmp_path / "file.part").write_bytes(CONTENT[:1000])
    assert fetch(server, tmp_path / "file").read_bytes() == CONTENT
    assert server.log == ["bytes=1000-"]


def test_part_longer_than_the_file_starts_over(server, tmp_path):
    (tmp_path / "file.part").write_bytes(CONTENT + b"more")
    assert fetch(server, tmp_path / "file").read_bytes() == CONTENT
    assert server.log == [f"bytes={len(CONTENT) + 4}-", None]


@pytest.mark.parametrize("chunked", [False, True])
def test_length_may_be_unknown(server, tmp_path, chunked):
    server.chunked = chunked
    assert fetch(server, tmp_path / "file").read_bytes() == CONTENT


def test_cut_chunked_answer_is_noticed(server, tmp_path):
    server.chunked, server.cut = True, 1000
    with pytest.raises(DataError, match="call again"): fetch(server, tmp_path / "file", None)
    assert not (tmp_path / "file").exists()


def test_wrong_digest_leaves_nothing(server, tmp_path):
    (tmp_path / "file.part").write_bytes(b"\0" * 1000)       # the beginning of some other version
    with pytest.raises(DataError, match=f"expected {DIGEST}"): fetch(server, tmp_path / "file")
    assert not [p for p in tmp_path.iterdir() if p.suffix != ".lock"]
    assert fetch(server, tmp_path / "file").read_bytes() == CONTENT


def test_missing_page_and_unreachable_host(server, tmp_path):
    with pytest.raises(DataError, match="answered 404"): fetch(server, tmp_path / "file", url=server.url + "s")
    with pytest.raises(DataError, match="cannot be reached"): fetch(server, tmp_path / "file", url="http://127.0.0.1:9/file")
    assert not [p for p in tmp_path.iterdir() if p.suffix != ".lock"]


# Unpacking

@pytest.mark.parametrize("name", ["../out.txt", "a/../../out.txt", "/tmp/lmac_piq_out.txt"])
def test_zip_members_may_not_escape(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as file:
        file.writestr("fine.txt", "x")
        file.writestr(name, "x")
    with pytest.raises(DataError, match="outside the folder"): unpack(tmp_path / "evil.zip", tmp_path / "in")
    assert [p.name for p in tmp_path.rglob("*")] == ["evil.zip"]


def test_damaged_zip_leaves_nothing(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file: file.writestr("a.bin", CONTENT)
    data = bytearray((tmp_path / "a.zip").read_bytes())
    data[200_000] ^= 255
    (tmp_path / "a.zip").write_bytes(data)
    with pytest.raises(DataError, match="damaged"): unpack(tmp_path / "a.zip", tmp_path / "a")
    assert [p.name for p in tmp_path.iterdir()] == ["a.zip"]


# ESC-50

def make_esc50(root, classes=2, seconds=0.25, rate=16000, suffix=".wav", csv="esc50.csv"):
    "A synthetic folder in ESC-50's layout: one noise clip per class and fold"
    generator = torch.Generator().manual_seed(0)
    (root / "audio").mkdir(parents=True)
    (root / csv).parent.mkdir(exist_ok=True)
    rows = [(f"{f}-{10 * f + c}-A-{c}.wav", f, c, f"class_{c}", False, 10 * f + c, "A") for f in range(1, 6) for c in range(classes)]
    for row in rows:
        wave = 0.1 * torch.randn(int(seconds * rate), generator=generator)
        save_wave(root / "audio" / row[0].replace(".wav", suffix), wave, rate)
    pd.DataFrame(rows, columns=ESC50_COLUMNS).to_csv(root / csv, index=False)
    return root


@pytest.mark.parametrize("layout", [dict(), dict(csv="meta/esc50.csv"), dict(suffix=".flac"), dict(rate=44100)])
def test_layouts_and_rates(tmp_path, layout):
    esc = ESC50(make_esc50(tmp_path / "esc50", **layout), cache=tmp_path / "cache", progress=False)
    assert len(esc) == 10 and esc.classes == ["class_0", "class_1"] and esc.waves.shape == (10, 80000)
    assert torch.equal(esc.targets, torch.tensor([0, 1] * 5))
    expected = load_wave(esc.files[3], 16000)
    assert (esc[3][:len(expected)] - expected).abs().max() <= 0.51 / 32768 and not esc[3][len(expected):].any()
    assert torch.equal(esc[[3, 5]], torch.stack([esc.wave(3), esc.wave(5)])) and torch.equal(esc[2:4][1], esc[3])
    for items in (esc.fold_items(2, 4), torch.tensor([2, 3]), [2, 3]):
        batch = esc.batch(items)
        assert torch.equal(batch.label, esc.targets[batch.item]) and torch.equal(batch.x, esc[batch.item])


def test_sixteen_bit_files_are_kept_bit_for_bit(tmp_path):
    import soundfile
    esc = ESC50(make_esc50(tmp_path / "esc50", seconds=5), cache=tmp_path / "cache", progress=False)
    for item in (0, 9): np.testing.assert_array_equal(esc.waves[item], soundfile.read(esc.files[item], dtype="int16")[0])


def test_indexing_is_a_fresh_copy(tmp_path):
    esc = ESC50(make_esc50(tmp_path / "esc50"), cache=tmp_path / "cache", progress=False)
    esc[0].zero_()
    assert esc[0].any()
    with pytest.raises(ValueError): esc.waves[0] = 0
    with pytest.raises(ValueError, match="1-5"): esc.fold_items(0)


@pytest.mark.parametrize("edit, words", [
    (lambda t: t.iloc[:7], "not equally many"),
    (lambda t: pd.concat([t, t.iloc[:1]]), "file names repeat"),
    (lambda t: t.assign(target=t.target[::-1].to_numpy()), "disagrees with its row"),
    (lambda t: t.assign(fold=9), "folds are not 1-5"),
    (lambda t: t.assign(target=t.target + 1), "targets are not"),
    (lambda t: t.assign(category="x"), "one to one"),
    (lambda t: t.assign(filename="../" + t.filename), "disagrees with its row"),
    (lambda t: t.assign(target="dog"), "column 'target' holds 'dog'"),
    (lambda t: t.drop(columns=["take", "fold"]), r"\['fold', 'take'\] are missing"),
    (lambda t: t.iloc[:0], "no rows"),
])
def test_inconsistent_tables_are_refused(tmp_path, edit, words):
    root = make_esc50(tmp_path / "esc50", seconds=0.01)
    edit(esc50_table(root)).to_csv(root / "esc50.csv", index=False)
    with pytest.raises(DataError, match=words): ESC50(root)


def test_unreadable_table_and_missing_clips(tmp_path):
    root = make_esc50(tmp_path / "esc50", seconds=0.01)
    (root / "audio" / "1-10-A-0.wav").unlink()
    with pytest.raises(DataError, match="1 of 10 clips are missing .*first 1-10-A-0.wav"): ESC50(root)
    (root / "esc50.csv").write_bytes(b"")
    with pytest.raises(DataError, match="not a csv"): ESC50(root)
    (root / "esc50.csv").write_bytes(bytes(range(256)))
    with pytest.raises(DataError): ESC50(root)


def test_a_damaged_clip_stops_the_cache_and_leaves_none(tmp_path):
    root = make_esc50(tmp_path / "esc50")
    (root / "audio" / "5-51-A-1.wav").write_bytes(b"RIFF nothing")
    esc = ESC50(root, cache=tmp_path / "cache", progress=False)
    with pytest.raises(AudioError, match="5-51-A-1.wav"): esc.waves
    assert not list(tmp_path.rglob("cache/waves/" + esc.digest[:16]))


def test_missing_data_names_variable_files_and_licence(tmp_path, monkeypatch):
    monkeypatch.setenv(DATA_ENV, str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    make_esc50(tmp_path / "xdg/lmac_piq/esc50", seconds=0.01)
    for load, words in [(ESC50, "esc50.csv.*CC BY-NC"), (noise_pack, "CC BY 4.0"), (speech_pack, "public domain")]:
        with pytest.raises(DataError, match=f"{DATA_ENV} is set.*{words}"): load()
    with pytest.raises(DataError, match=DATA_ENV): ESC50(download=True)      # whoever sets the variable means it
    monkeypatch.delenv(DATA_ENV)
    assert len(ESC50(progress=False)) == 10                                  # the user's cache


def test_working_folder_and_its_parent_are_searched(tmp_path, monkeypatch):
    monkeypatch.delenv(DATA_ENV, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    root = make_esc50(tmp_path / "repo/data/esc50", seconds=0.01)
    (tmp_path / "repo/nbs").mkdir()
    for folder in ("repo", "repo/nbs"):
        monkeypatch.chdir(tmp_path / folder)
        assert find("esc50") == root


def test_download_of_the_archive(server, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv(DATA_ENV, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.chdir(tmp_path)
    root = make_esc50(tmp_path / "made/ESC-50-master", csv="meta/esc50.csv")

    def zipped():
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
            for path in root.rglob("*"): file.write(path, path.relative_to(root.parent))
        return (tmp_path / "a.zip").read_bytes()

    server.content = zipped()
    folder = download_esc50(url=server.url, progress=False)
    assert folder == tmp_path / "xdg/lmac_piq/esc50" and len(ESC50(progress=False)) == 10
    out = capsys.readouterr().out
    assert hashlib.sha256(server.content).hexdigest() in out and "NOT the official one" in out and "CC BY-NC" in out
    (root / "audio/1-10-A-0.wav").unlink()                                    # an archive that lacks a clip gets no name
    server.content = zipped()
    folder.rename(tmp_path / "gone")
    with pytest.raises(DataError, match="1 of 10 clips"): download_esc50(url=server.url, progress=False)
    assert not folder.exists()


# UrbanSound8K

CITY = ["air_conditioner", "car_horn", "children_playing", "dog_bark", "drilling", "engine_idling", "gun_shot", "jackhammer", "siren", "street_music"]


def make_us8k(root, suffix=".wav"):
    "A synthetic folder in UrbanSound8K's official layout: one clip per fold and class, of several rates, channels, depths and lengths"
    import soundfile
    rng, rows = np.random.default_rng(0), []
    (root / "metadata").mkdir(parents=True)
    for fold in range(1, 11):
        (root / f"audio/fold{fold}").mkdir(parents=True)
        for c, category in enumerate(CITY):
            rate, seconds, source = (8000, 11025, 44100, 48000, 96000)[c % 5], rng.uniform(0.02, 0.1), 100 * fold + c
            rows.append((f"{source}-{c}-0-{fold}.wav", source, 0.5, 0.5 + seconds, 1 + c % 2, fold, c, category))
            wave = rng.uniform(-0.5, 0.5, (int(seconds * rate), 1 + fold % 2))
            soundfile.write(root / f"audio/fold{fold}" / rows[-1][0].replace(".wav", suffix), wave, rate, subtype=("PCM_16", "PCM_24")[c % 2])
    pd.DataFrame(rows, columns=list(US8K_COLUMNS)).to_csv(root / "metadata/UrbanSound8K.csv", index=False)
    return root


def us8k_edit(root, **cells):
    "Change cells of the first row"
    path = root / "metadata/UrbanSound8K.csv"
    table = pd.read_csv(path, dtype=str)
    for column, value in cells.items(): table.loc[0, column] = value
    table.to_csv(path, index=False)


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_us8k_has_what_esc50_has(tmp_path, suffix):
    urban = UrbanSound8K(make_us8k(tmp_path / "u", suffix), cache=tmp_path / "cache", progress=False)
    esc = ESC50(make_esc50(tmp_path / "e", seconds=0.1), cache=tmp_path / "cache", progress=False)
    assert urban.classes == CITY and len(urban) == 100 and repr(urban).startswith("UrbanSound8K(100 clips, 10 classes, folds 1-10")
    for data in (urban, esc):
        assert data.waves.shape == (len(data), 80000) and data.waves.dtype == np.int16 and not data.waves.flags.writeable
        assert {"filename", "fold", "target", "category", "src_file"} <= set(data.table) and data.table.index.name == "item"
        assert data.targets.dtype == torch.int64 and data.lengths.dtype == torch.int64 and len(data.digest) == 64
        for item in (0, len(data) - 1):
            wave, n = load_wave(data.files[item], 16000), int(data.lengths[item])
            assert abs(len(wave) - n) <= 1 and (data.wave(item)[:n] - wave[:n]).abs().max() <= 0.51 / 32768 and not data[item][n:].any()
        batch = data.batch(data.fold_items(4, 5))
        assert torch.equal(batch.label, data.targets[batch.item]) and torch.equal(batch.x, data[batch.item])
    assert sorted(set(np.concatenate([urban.fold_items(k) for k in range(1, 11)]))) == list(range(100))
    with pytest.raises(ValueError, match="1-10"): urban.fold_items(11)


def test_us8k_seconds_crop_and_have_their_own_cache(tmp_path):
    root = make_us8k(tmp_path / "u")
    long, short = (UrbanSound8K(root, tmp_path / "cache", seconds=s, progress=False) for s in (5.0, 0.05))
    assert short.waves.shape == (100, 800) and short.digest != long.digest and torch.equal(short[3], long[3][:800])
    assert int(short.lengths.max()) == 800 and torch.equal(short.lengths, long.lengths.clamp(max=800))
    assert len([p for p in (tmp_path / "cache/waves").iterdir() if p.is_dir()]) == 2


@pytest.mark.parametrize("cells, words", [
    (dict(fold="0"), r"fold is not 1-10 \(100-0-0-1.wav\)"),
    (dict(fold="two"), r"fold is not 1-10 \(100-0-0-1.wav\)"),
    (dict(classID="10"), "classID is not 0-9"),
    ({"class": "siren"}, r"class is not that of other rows with its classID \(100-0-0-1.wav\)"),
    (dict(fsID="101"), r"does not begin with fsID and classID \(100-0-0-1.wav\)"),
    (dict(slice_file_name="../../100-0-0-1.wav"), "does not begin with fsID"),
    (dict(slice_file_name="101-1-0-1.wav"), r"the name repeats \(101-1-0-1.wav\)"),
    (dict(salience="3"), "salience"),
    (dict(end="0.5"), "between 0 and 4 s"),
    (dict(start="-9"), "between 0 and 4 s"),
    (dict(fsID="200", slice_file_name="200-0-0-1.wav"), r"lies in two folds \(200-0-0-1.wav and 1 more\)"),
])
def test_wrong_us8k_rows_are_named(tmp_path, cells, words):
    root = make_us8k(tmp_path / "u")
    us8k_edit(root, **cells)
    with pytest.raises(DataError, match=words): UrbanSound8K(root)


def test_us8k_files_missing_moved_and_unlisted(tmp_path, monkeypatch):
    root = make_us8k(tmp_path / "u")
    clip, table = root / "audio/fold3/305-5-0-3.wav", root / "metadata/UrbanSound8K.csv"
    (root / "audio/fold3/.DS_Store").touch(); (root / "audio/fold3/._305-5-0-3.wav").touch()
    assert len(UrbanSound8K(root)) == 100                                       # what file managers leave behind does not count
    clip.rename(root / "audio/fold4" / clip.name)
    with pytest.raises(DataError, match=r"1 of 100 clips are missing, first fold3/305-5-0-3 \(it lies in fold4\).*zenodo"): UrbanSound8K(root)
    (root / "audio/fold4" / clip.name).unlink()
    with pytest.raises(DataError, match="first fold3/305-5-0-3. https://zenodo"): UrbanSound8K(root)
    shutil.copy(root / "audio/fold3/304-4-0-3.wav", clip)
    shutil.copy(clip, clip.with_name("305-5-0-4.wav"))
    with pytest.raises(DataError, match="305-5-0-4.wav: no row of the table names it"): UrbanSound8K(root)
    table.write_bytes(b"")
    with pytest.raises(DataError, match="not a csv"): UrbanSound8K(root)
    table.unlink()
    with pytest.raises(DataError, match="missing; expected metadata/UrbanSound8K.csv and audio/fold1"): UrbanSound8K(root)
    monkeypatch.setenv(DATA_ENV, str(tmp_path))
    with pytest.raises(DataError, match="8732 .wav files. Source: https://zenodo.org/records/1203745. Licence: CC BY-NC 3.0"): UrbanSound8K()
    make_us8k(tmp_path / "urbansound8k")
    assert len(UrbanSound8K()) == 100


# The wave cache

def _open_cache(files, cache, results):
    waves = wave_cache(files, "digest", cache, n_samples=4000, progress=False)
    results.put(int(np.asarray(waves, dtype=np.int64).sum()))


def test_two_processes_share_one_cache(tmp_path):
    root = make_esc50(tmp_path / "esc50")
    files = esc50_files(root, esc50_table(root))
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    workers = [context.Process(target=_open_cache, args=(files, tmp_path / "cache", results)) for _ in range(3)]
    for worker in workers: worker.start()
    sums = [results.get(timeout=60) for _ in workers]
    for worker in workers: worker.join()
    assert len(set(sums)) == 1 and [w.exitcode for w in workers] == [0, 0, 0]
    assert [p.name for p in (tmp_path / "cache/waves").iterdir() if p.is_dir()] == ["digest"]


def test_damage_is_found_and_repaired(tmp_path):
    root = make_esc50(tmp_path / "esc50")
    files = esc50_files(root, esc50_table(root))
    get = lambda n=4000: wave_cache(files, "digest", tmp_path / "cache", n_samples=n, progress=False)
    good, folder = get().copy(), tmp_path / "cache/waves/digest"
    damages = [lambda: os.truncate(folder / "waves.npy", 0), lambda: os.truncate(folder / "waves.npy", 50_000),
               lambda: (folder / "manifest.json").write_text("{"), lambda: (folder / "waves.npy").unlink(),
               lambda: np.save(folder / "waves.npy", good[:5]), lambda: np.save(folder / "waves.npy", good[::-1])]
    for damage in damages:
        damage()
        np.testing.assert_array_equal(get(), good)
    assert get(2000).shape == (10, 2000)                       # another length is not this cache's
    assert sha256_file(folder / "waves.npy") in (folder / "manifest.json").read_text()


def test_interrupted_decoding_leaves_no_cache(tmp_path, monkeypatch):
    root = make_esc50(tmp_path / "esc50")
    files = esc50_files(root, esc50_table(root))
    calls = []

    def stop(path, rate):
        calls.append(path)
        if len(calls) == 5: raise KeyboardInterrupt
        return torch.zeros(rate)

    monkeypatch.setattr("lmac_piq.data.load_wave", stop)
    with pytest.raises(KeyboardInterrupt): wave_cache(files, "digest", tmp_path / "cache", progress=False)
    assert not (tmp_path / "cache/waves/digest").exists()
    wave_cache(files, "digest", tmp_path / "cache", progress=False)
    assert len(calls) == 15 and not (tmp_path / "cache/waves/digest.tmp").exists()


# Batches, noise, speech

@given(n=st.integers(0, 60), size=st.integers(1, 20), shuffle=st.booleans(), drop=st.booleans())
@settings(max_examples=50, deadline=None)
def test_batches_cover_every_item_once(n, size, shuffle, drop):
    generator = torch.Generator().manual_seed(n) if shuffle else None
    got = list(batches(n, size, generator, drop))
    joined = [int(i) for b in got for i in b]
    assert len(set(joined)) == len(joined) == (n - n % size if drop else n)
    assert all(len(b) == size for b in got[:-1]) and (shuffle or joined == sorted(joined))


def noise(name, seconds, **more): return NoiseFile(name, torch.arange(1.0, int(seconds * 16000) + 1), **more)


@given(seconds=st.lists(st.integers(1, 100), min_size=2, max_size=12), seed=st.integers(0, 9))
@settings(max_examples=50, deadline=None)
def test_split_by_file_is_a_balanced_partition(seconds, seed):
    files = [NoiseFile(str(i), torch.zeros(s)) for i, s in enumerate(seconds)]
    parts = [split_files(files, part, seed) for part in ("train", "test")]
    names = [{f.name for f in part} for part in parts]
    assert not names[0] & names[1] and len(names[0] | names[1]) == len(files) and all(parts)
    assert abs(sum(len(f.wave) for f in parts[0]) - sum(len(f.wave) for f in parts[1])) <= max(seconds)
    assert [f.name for f in split_files(files[::-1], "train", seed)] == [f.name for f in parts[0]]


def test_crop_of_long_looped_and_padded_files():
    generator = torch.Generator().manual_seed(0)
    starts = {int(crop([noise("a", 0.001)], 10, generator)[0][0]) for _ in range(200)}
    assert starts == set(range(1, 8))                                       # 16 samples, 7 places for 10, all reached
    wave, name = crop([noise("a", 0.001, loop=False)], 20, generator)
    assert wave.tolist() == [*range(1, 17), 0, 0, 0, 0] and name == "a"
    wave, _ = crop([noise("a", 0.001)], 40, generator)
    assert torch.equal(wave[16:], wave[:24]) and wave.min() == 1
    assert crop([noise("a", 0.001)], 16, generator)[0].tolist() == list(range(1, 17))


def test_crop_repeats_with_its_generator_and_avoids_related_classes():
    files = [noise(n, 1, related_classes=RELATED_CLASSES.get(n, ())) for n in ("dude_miaowing", "running_tap", "bike")]
    draw = lambda seed, avoid=(): [crop(files, 5, g, avoid)[1] for g in [torch.Generator().manual_seed(seed)] for _ in range(60)]
    assert draw(1) == draw(1) and set(draw(1)) == {"dude_miaowing", "running_tap", "bike"}
    assert set(draw(1, "cat")) == {"running_tap", "bike"} and set(draw(1, ("cat", "toilet_flush"))) == {"bike"}
    with pytest.raises(ValueError, match="give more files"): crop(files[:1], 5, torch.Generator(), "cat")
    wave, _ = crop(files, 5, torch.Generator())
    wave.zero_()
    assert all(f.wave.all() for f in files)                                 # a crop is a copy


# Real data, where LMAC_PIQ_DATA names it

@real
def test_real_esc50(tmp_path):
    esc = ESC50(cache=tmp_path)
    assert len(esc) == 2000 and len(esc.classes) == 50 and esc.classes[0] == "dog" and esc.classes[49] == "hand_saw"
    assert (esc.table.groupby("fold").size() == 400).all() and (esc.table.groupby(["target", "fold"]).size() == 8).all()
    assert [len(esc.fold_items(f)) for f in range(1, 6)] == [400] * 5 and esc.table.esc10.sum() == 400
    folds = esc.table.groupby("src_file").fold.nunique()
    assert sorted(folds[folds > 1].index) == [131943, 134049, 209698, 234879]      # each under two classes
    assert sha256_file(esc.root / "esc50.csv" if (esc.root / "esc50.csv").is_file() else esc.root / "meta/esc50.csv") == ESC50_CSV_SHA256
    waves = wave_cache([esc.files[i] for i in range(0, 2000, 400)], "few", tmp_path, progress=False)
    assert waves.shape == (5, 80000) and all(wave.any() for wave in waves)
    assert {c for classes in RELATED_CLASSES.values() for c in classes} <= set(esc.classes)


@real
@pytest.mark.parametrize("pack", [noise_pack, speech_pack])
def test_real_packs(pack):
    files = pack()
    for part in ("train", "test"):
        half = split_files(files, part)
        assert sum(len(f.wave) for f in half) / 16000 > 100            # seconds
        wave, _ = crop(half, 80000, torch.Generator().manual_seed(0), avoid=("cat", "pouring_water"))
        assert wave.shape == (80000,) and wave.isfinite().all() and wave.any()
