"""The native search is built once, on first use. After any failure the plain search is used."""

import fcntl
import logging
import os
import platform
import subprocess
import threading

import pytest
import torch

from pqdiff.quantizers.search import backends
from pqdiff.quantizers.search import native as search_native
from pqdiff.quantizers.search import native_build as build
from pqdiff.quantizers.search import plain as search_plain
from pqdiff.quantizers.search.nearest import nearest_codewords

CPU = torch.device("cpu")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, and a process that has not looked for the library yet."""
    monkeypatch.setenv("PQDIFF_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(backends.ENVIRONMENT_VARIABLE, raising=False)
    monkeypatch.setattr(build, "FLAGS", [flag.replace("-O3", "-O0") for flag in build.FLAGS])  # many builds
    search_native._load.cache_clear()
    backends._report.cache_clear()
    yield tmp_path / "cache"
    search_native._load.cache_clear()


@pytest.fixture
def compiler():
    try:
        return build.find_compiler()
    except build.NativeUnavailable as error:
        pytest.skip(str(error))


def libraries(cache):
    return sorted(path.name for path in cache.glob("*.so"))


def assert_falls_back(caplog, message, level=logging.WARNING):
    """Three searches are right and by plain torch, with one log line."""
    torch.manual_seed(0)
    z, codebooks = torch.randn(1, 2, 2, 9), torch.randn(2, 20, 2)
    with caplog.at_level(level, logger="pqdiff"):
        for _ in range(3):
            assert backends.backend_name(CPU) == "plain"
            assert torch.equal(nearest_codewords(z, codebooks), search_plain.nearest(z, codebooks))
    records = [record for record in caplog.records if record.name.startswith("pqdiff")]
    assert [record.levelno for record in records] == [level]
    assert message in caplog.text
    assert len(records[0].getMessage().splitlines()) == 1


def test_it_is_built_once_and_then_loaded(cache, compiler, monkeypatch):
    assert search_native.why_not() is None
    (name,) = libraries(cache)
    changed = (cache / name).stat().st_mtime_ns
    search_native._load.cache_clear()
    monkeypatch.setattr(build, "_compile", None)  # a second build would fail
    assert search_native.why_not() is None
    assert (cache / name).stat().st_mtime_ns == changed


def test_parallel_builds_leave_one_whole_library(cache, compiler):
    loaded = []
    threads = [threading.Thread(target=lambda: loaded.append(build.load_library())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [library.pqdiff_search is not None for library in loaded] == [True] * 3
    assert {name.rpartition("-")[0] for name in libraries(cache)} == {build.library_name(compiler)}
    assert all(path.suffix == ".so" for path in cache.iterdir())


def built(cache):
    """Path of the library, which is built now; the process then forgets it."""
    assert search_native.why_not() is None
    search_native._load.cache_clear()
    (name,) = libraries(cache)
    return cache / name


def test_a_library_cut_short_or_changed_is_built_again_and_never_loaded(cache, compiler):
    path = built(cache)
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], content[:-1] + b"?"):
        path.unlink()  # the first one is still loaded
        path.write_bytes(damaged)
        assert built(cache).read_bytes() == content


@pytest.mark.parametrize("mode", [0o720, 0o702])
def test_a_library_to_which_others_may_write_is_built_again(cache, compiler, monkeypatch, mode):
    monkeypatch.setattr(build, "_is_private_group", lambda group: False)
    path = built(cache)
    path.chmod(mode)
    assert built(cache).stat().st_mode & 0o777 == 0o700


def test_a_link_or_a_library_of_another_user_is_built_again(cache, compiler, tmp_path):
    path = built(cache)
    path.rename(tmp_path / "planted.so")
    path.symlink_to(tmp_path / "planted.so")
    assert not built(cache).is_symlink()
    if os.getuid() == 0:
        os.chown(path, 54321, -1)
        assert built(cache).stat().st_uid == 0


@pytest.mark.parametrize(("which", "mode"), [("cache", 0o1770), ("parent", 0o777)])
def test_in_a_folder_to_which_others_may_write_nothing_is_loaded_or_kept(
    cache, compiler, monkeypatch, caplog, which, mode
):
    monkeypatch.setattr(build, "_is_private_group", lambda group: False)
    path = built(cache)
    path.write_bytes(b"planted")
    folder = cache if which == "cache" else cache.parent
    folder.chmod(mode)
    assert search_native.why_not() is None
    assert f"Others may write to {folder}" in caplog.text
    assert [file.read_bytes() for file in cache.iterdir()] == [b"planted"]


def test_a_folder_of_another_user_is_not_used(cache, compiler, monkeypatch):
    path = built(cache)
    if os.getuid() == 0:
        os.chown(cache, 54321, -1)
    else:
        monkeypatch.setattr(os, "getuid", lambda: 54321)
    path.write_bytes(b"planted")
    assert search_native.why_not() is None
    assert [file.read_bytes() for file in cache.iterdir()] == [b"planted"]


def test_a_folder_below_one_like_tmp_is_used(cache, compiler):
    cache.parent.chmod(0o1777)
    assert built(cache).is_file()


def test_what_looks_like_a_lock_neither_hangs_nor_is_written_to(cache, compiler, tmp_path):
    cache.mkdir(mode=0o700)
    target = tmp_path / "valuable"
    target.write_text("text")
    lock = cache / f"{build.library_name(compiler)}.lock"
    lock.symlink_to(target)
    with open(target) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert built(cache).is_file()
    assert target.read_text() == "text"


def test_the_name_changes_with_source_compiler_and_machine(compiler, monkeypatch, tmp_path):
    names = {build.library_name(compiler), build.library_name([*compiler, "-g"])}
    monkeypatch.setattr(build, "_cpu_flags", lambda: "another machine")
    names.add(build.library_name(compiler))
    changed = tmp_path / "search.cpp"
    changed.write_text(build.SOURCE.read_text() + "\n")
    monkeypatch.setattr(build, "SOURCE", changed)
    names.add(build.library_name(compiler))
    assert len(names) == 4


def test_without_a_compiler_the_plain_search_is_used_quietly(cache, monkeypatch, caplog):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "")
    assert_falls_back(caplog, "no C++ compiler", logging.INFO)


def test_a_compiler_that_fails_is_reported(cache, tmp_path, monkeypatch, caplog):
    script = tmp_path / "my-compiler"
    script.write_text("#!/bin/sh\necho 'search.cpp:1: error: what is this?' >&2\necho more >&2\nexit 1\n")
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    assert_falls_back(caplog, "error: what is this?")
    assert libraries(cache) == []  # nothing half-made is left


def test_a_compiler_that_writes_nonsense_is_reported(cache, tmp_path, monkeypatch, caplog):
    script = tmp_path / "my-compiler"
    script.write_text('#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done\necho nonsense > "$2"\n')
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    assert_falls_back(caplog, "native cannot be used")
    assert libraries(cache) == []


def test_a_compiled_search_with_wrong_answers_is_not_used(cache, compiler, tmp_path, monkeypatch, caplog):
    source = tmp_path / "search.cpp"
    text = build.SOURCE.read_text()
    source.write_text(text.replace("q.table + s * q.stride, q,", "q.table, q,"))  # always in the first codebook
    assert source.read_text() != text
    monkeypatch.setattr(build, "SOURCE", source)
    assert_falls_back(caplog, "the compiled search gives wrong indices")


def test_a_cache_that_cannot_be_written_is_reported(cache, compiler, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv("PQDIFF_CACHE", str(tmp_path / "file" / "cache"))
    assert_falls_back(caplog, "Not a directory")


def test_the_cache_is_where_the_user_keeps_caches(monkeypatch, tmp_path):
    monkeypatch.delenv("PQDIFF_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert build.cache_folder() == tmp_path / "pqdiff"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert build.cache_folder() == tmp_path / ".cache" / "pqdiff"


MANY = 1100  # vectors with which the native search takes its filter
VECTOR_FLAGS = {"portable": [], "avx2": ["-mavx2", "-mfma"], "avx512": ["-mavx512f", "-mfma"]}
CPU_FLAGS = build._cpu_flags().split()


@pytest.mark.parametrize("width", VECTOR_FLAGS)
def test_every_vector_width_gives_the_same_codes(cache, compiler, monkeypatch, width):
    needed = {"portable": [], "avx2": ["avx2", "fma"], "avx512": ["avx512f", "fma"]}[width]
    if not set(needed) <= set(CPU_FLAGS) or (needed and platform.machine() not in ("x86_64", "AMD64")):
        pytest.skip(f"this CPU has no {width}")
    monkeypatch.setattr(build, "OPTIONAL_FLAGS", [VECTOR_FLAGS[width]])
    assert search_native.why_not() is None
    torch.manual_seed(0)
    for dim in (1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 17, 24, 31, 40):
        for number in (75, MANY):  # without and with the filter
            z, codebooks = 10 + 0.1 * torch.randn(2, 3, dim, number), 10 + 0.1 * torch.randn(3, 53, dim)
            z[0, 0, 0, 3], z[0, 1, 0, 3] = torch.nan, torch.inf
            assert torch.equal(search_native.nearest(z, codebooks), search_plain.nearest(z, codebooks))


HARNESS = """
#include SOURCE
#include <random>
#include <vector>
int main() {
  std::mt19937 random(0);
  std::normal_distribution<float> normal;
  for (int round = 0; round < 120; ++round) {
    const int64_t batch = 1 + random() % 2, subspaces = 1 + random() % 3;
    const int64_t positions = 1 + random() % (round % 5 ? 150 : 1200);
    const int64_t dim = 1 + random() % (round % 4 ? 60 : 1500), codewords = 1 + random() % (round % 3 ? 300 : 2000);
    std::vector<float> z(batch * subspaces * dim * positions), codebooks(subspaces * codewords * dim);
    for (float& value : z) value = normal(random);
    for (float& value : codebooks) value = normal(random);
    std::vector<float> z_q(z.size()), sums(codebooks.size());
    std::vector<int64_t> indices(batch * subspaces * positions);
    std::vector<int32_t> counts(subspaces * codewords);
    std::vector<double> errors(subspaces);
    const int64_t strides[] = {subspaces * dim * positions, dim * positions, positions, 1};
    const int64_t sizes[] = {batch, subspaces, dim, positions, codewords};
    if (pqdiff_search(z.data(), strides, sizes, codebooks.data(), indices.data(), z_q.data(), counts.data(), sums.data(),
                      errors.data(), 1 + round % 3))
      return 1;
    for (int64_t index : indices)
      if (index < 0 || index >= codewords) return 2;
    const int64_t bases = 1 + random() % 3, classes = bases * (1 + random() % 9), candidates = 1 + random() % classes;
    const int64_t width = subspaces * dim, vectors = positions;
    std::vector<float> everywhere(vectors * bases * width), outside(vectors * bases, 1), scales(classes * width, 0.5f);
    for (float& value : everywhere) value = normal(random);
    std::vector<int64_t> likeliest(vectors * candidates), tokens((subspaces + 1) * vectors);
    for (int64_t& index : likeliest) index = random() % classes;
    const int64_t all[] = {vectors, candidates, bases, classes, subspaces, codewords, dim};
    if (pqdiff_classify(everywhere.data(), outside.data(), likeliest.data(), scales.data(), codebooks.data(), all,
                        tokens.data(), 1 + round % 3))
      return 3;
    for (int64_t i = 0; i < int64_t(tokens.size()); ++i)
      if (tokens[i] < 0 || tokens[i] >= (i < vectors ? classes : codewords)) return 4;
  }
}
"""


@pytest.mark.slow
@pytest.mark.parametrize("width", VECTOR_FLAGS)
def test_no_byte_is_touched_beside_what_is_given(compiler, tmp_path, width):
    source, program = tmp_path / "harness.cpp", tmp_path / "harness"
    source.write_text(HARNESS)
    flags = [
        "-std=c++17",
        "-O1",
        "-fopenmp",
        "-ffp-contract=off",
        "-fsanitize=address,undefined",
        "-fno-sanitize-recover=all",
    ]
    flags += VECTOR_FLAGS[width] + [f'-DSOURCE="{build.SOURCE}"']
    if subprocess.run([*compiler, *flags, "-o", program, source], capture_output=True).returncode:
        pytest.skip("the compiler has no address sanitizer or no such vectors")
    if width != "portable" and {"avx2": "avx2", "avx512": "avx512f"}[width] not in CPU_FLAGS:
        pytest.skip(f"this CPU has no {width}")
    result = subprocess.run([program], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
