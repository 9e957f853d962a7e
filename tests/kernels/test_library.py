"""The compiled CPU kernels are found, checked and called; what is wrong with them is said, and never runs."""

from __future__ import annotations

import ctypes
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from expand.errors import UsageError
from expand.kernels import builds, library
from expand.kernels.library import Library, UnusableBuild, find
from expand.training.runtime import Runtime

ROOT = Path(__file__).resolve().parents[2]
SOURCE = """
#include <cstdint>
static void* openmp;
extern "C" void use_openmp(void* parallel) { openmp = parallel; }
extern "C" const char* source_hash() { return X3D_SOURCE_HASH; }
extern "C" int scaled_f32(int threads, const float* x, int64_t n, double by, float* out) {
    for (int64_t i = 0; i < n; ++i) out[i] = x ? float(x[i] * by) : float(threads);
    return n < 0;
}
extern "C" int scaled_f64(int threads, const double* x, int64_t n, double by, double* out) {
    for (int64_t i = 0; i < n; ++i) out[i] = x ? x[i] * by : threads;
    return n < 0;
}
"""
needs_compiler = pytest.mark.skipif(builds.compiler() is None, reason="no C++ compiler here")


def write_sources(folder: Path, source: str = SOURCE) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / builds.SOURCE).write_text(source)
    shutil.copy(builds.HERE / "builds.py", folder)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with small sources and their build `base`."""
    folder = write_sources(tmp_path_factory.mktemp("kernels"))
    assert builds.build_all(["base"], folder) == {}
    return folder


@pytest.fixture
def copied(made, tmp_path) -> Path:
    """As `made`, for a test that spoils it."""
    return Path(shutil.copytree(made, tmp_path / "kernels"))


@needs_compiler
def test_a_build_of_the_sources_beside_it_is_used(made):
    found, status = find(made, "", ("base",))
    assert (status.build, status.path) == ("base", made / builds.file_name("base")) and found.path == status.path
    assert (status.why, status.fix, status.remark) == (None, None, None)


@needs_compiler
def test_a_call_passes_addresses_numbers_and_threads(made):
    kernels = Library(made / builds.file_name("base"))
    for dtype in (torch.float32, torch.float64):
        x, out = torch.arange(5, dtype=dtype), torch.zeros(6, dtype=dtype)
        kernels.call("scaled", dtype, x, 5, 0.5, out)
        assert out.tolist() == [0, 0.5, 1, 1.5, 2, 0]
        kernels.call("scaled", dtype, x, 5, 2, out)  # a whole number where the first call had a float
        assert out.tolist() == [0, 2, 4, 6, 8, 0]
        kernels.call("scaled", dtype, None, 6, 1.0, out)
        assert out.tolist() == [torch.get_num_threads()] * 6


@needs_compiler
def test_other_types_are_refused_before_anything_is_called(made):
    kernels = Library(made / builds.file_name("base"))
    out = torch.zeros(2, dtype=torch.bfloat16)
    with pytest.raises(TypeError, match="not for torch.bfloat16"):
        kernels.call("scaled", out.dtype, None, 2, 1.0, out)
    kernels.call("scaled", torch.float32, None, 0, 1.0, torch.zeros(0))
    with pytest.raises(ctypes.ArgumentError):
        kernels.call("scaled", torch.float32, None, 0.5, 1.0, torch.zeros(1))


@needs_compiler
def test_a_call_that_fails_for_want_of_memory_says_so(made):
    with pytest.raises(MemoryError, match="scaled got no memory"):
        Library(made / builds.file_name("base")).call("scaled", torch.float32, None, -1, 1.0, torch.zeros(0))


@pytest.mark.skipif(library.load() is None, reason="no compiled kernels: see `x3d-expand doctor`")
@pytest.mark.parametrize("openmp", [True, False], ids=["torch's threads", "threads of its own"])
def test_a_thread_without_memory_ends_no_process(openmp):
    script = f"""
import torch
from expand.kernels import library
kernels = library.load()
if not {openmp}: kernels._library.use_openmp(None)
torch.set_num_threads(3)
width = 2**50  # more than any address space has
try: kernels.call("gate_forward", torch.float32, 4, width, *[None] * 2, 1, *[None] * 6)
except MemoryError: print("told")
out = torch.zeros(9)
kernels.call("probe", torch.float32, out, 9)  # and the next call does its work
print(out.tolist() == list(range(9)))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=ROOT)
    assert (done.returncode, done.stdout) == (0, "told\nTrue\n"), done.stderr


@needs_compiler
def test_a_build_of_other_sources_is_not_used(copied):
    with open(copied / builds.SOURCE, "a") as file:
        file.write("\n")
    found, status = find(copied, "", ("base",))
    assert found is None and status.build is None and status.path is None
    assert status.why == "`base`: made from other sources than those beside it"
    assert status.fix.endswith(f"build them: {sys.executable} -m expand.kernels.builds")
    assert status.remark.startswith(f"compiled CPU kernels: {status.why}; PyTorch's own operators train instead")


@needs_compiler
@pytest.mark.parametrize("name", ["norm.h", "builds.py"])
def test_a_changed_header_or_flag_makes_a_build_stale_until_it_is_built_anew(copied, tmp_path, name):
    (copied / "notes.txt").write_text("nothing")
    assert find(copied, "", ("base",))[0] is not None
    with open(copied / name, "a") as file:
        file.write("\n")
    assert find(copied, "", ("base",))[0] is None
    assert builds.build_all(["base"], copied) == {}
    again = shutil.copytree(copied, tmp_path / "again")  # a process keeps what it has opened under a name
    assert find(again, "", ("base",))[0] is not None


def test_the_hash_knows_which_file_a_line_stands_in(tmp_path):
    (tmp_path / "a.h").write_text("one\ntwo\n")
    (tmp_path / "b.h").write_text("")
    before = builds.source_hash(tmp_path)
    (tmp_path / "a.h").write_text("one\n")
    (tmp_path / "b.h").write_text("two\n")
    assert builds.source_hash(tmp_path) != before


@needs_compiler
def test_a_build_without_sources_beside_it_is_used(copied):
    (copied / builds.SOURCE).unlink()
    assert find(copied, "", ("base",))[1].build == "base"


@needs_compiler
@pytest.mark.parametrize(("content", "why"), [(b"", "cannot be loaded"), (b"\x7fELF, or so", "cannot be loaded")])
def test_a_spoilt_file_is_told_and_the_next_build_taken(copied, content, why):
    (copied / builds.file_name("avx2")).write_bytes(content)
    found, status = find(copied, "", ("avx2", "base"))
    assert found.path == copied / builds.file_name("base") and status.build == "base"
    assert status.why.startswith(f"`avx2`: {why}") and "only those for `base` are in use" in status.remark


@needs_compiler
def test_a_library_of_something_else_is_refused(tmp_path):
    folder = write_sources(tmp_path / "other", 'extern "C" int nothing() { return 0; }\n')
    assert builds.build_all(["base"], folder) == {}
    with pytest.raises(UnusableBuild, match="no build of these kernels"):
        Library(folder / builds.file_name("base"))


def test_without_any_build_the_reason_is_that_none_was_built(tmp_path):
    found, status = find(write_sources(tmp_path / "kernels"), "", ("avx2", "base"))
    assert found is None and status.why == "`avx2` and `base`: not built"


@needs_compiler
def test_a_failing_compiler_is_quoted_in_a_line(tmp_path):
    folder = write_sources(tmp_path / "kernels", "int broken( {\n")
    failed = builds.build_all(["base"], folder)
    assert "cpu.cpp:1" in failed["base"] and "error" in failed["base"] and "\n" not in failed["base"]
    status = find(folder, "", ("base",))[1]
    assert status.why == f"`base`: not built: {failed['base']}" and "CXX=NAME takes another compiler" in status.fix
    write_sources(folder)
    assert find(folder, "", ("base",))[1].why == "`base`: not built"  # what failed were other sources
    assert not list(folder.glob(".build-*"))


@needs_compiler
def test_an_old_build_whose_successor_failed_is_explained_by_both(copied):
    write_sources(copied, "int broken( {\n")
    failed = builds.build_all(["base"], copied)
    why = find(copied, "", ("base",))[1].why
    assert why == f"`base`: made from other sources than those beside it: {failed['base']}"


def test_no_compiler_and_one_that_is_not_there_are_told_apart(tmp_path, monkeypatch):
    folder = write_sources(tmp_path / "kernels")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert builds.build_all(["base"], folder) == {"base": "there is no C++ compiler"}
    status = find(folder, "", ("base",))[1]
    assert status.why == "`base`: not built: there is no C++ compiler" and "apt-get install g++" in status.fix
    monkeypatch.setenv("CXX", "ccache my-c++")
    assert builds.build_all(["base"], folder) == {"base": "CXX=ccache my-c++ names no program that is here"}


def test_a_compiler_that_says_nothing_or_does_not_run_is_a_failed_build(tmp_path, monkeypatch):
    folder = write_sources(tmp_path / "kernels")
    for content, said in (("#!/bin/sh\nexit 3\n", "ended with 3"), ("not a program\0", "did not run")):
        script = tmp_path / "c++"
        script.write_text(content)
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("CXX", str(script))
        assert said in builds.build_all(["base"], folder)["base"]


def test_the_commands_flags_come_from_the_environment_and_from_here(tmp_path, monkeypatch):
    script = tmp_path / "c++"
    script.write_text('#!/bin/sh\necho "error: $*" >&2\nexit 1\n')
    script.chmod(0o755)
    for name, value in (("CXX", f"{script} -v"), ("CXXFLAGS", "-O1 -DONE='a b'"), ("LDFLAGS", "-Lhere")):
        monkeypatch.setenv(name, value)
    said = builds.build_all(["base"], write_sources(tmp_path / "kernels"))["base"].split()
    assert said[1:5] == ["-v", "-O1", "-DONE=a", "b"] and said.index("-O1") < said.index("-O2")  # the last one counts


def test_a_record_that_cannot_be_read_is_no_record(tmp_path):
    for content in ("", "[]", "{", '{"failures": 3, "source": ""}', '{"failures": {}}'):
        (tmp_path / builds.RECORD).write_text(content)
        assert builds.failures(tmp_path) == {}


@needs_compiler
def test_off_uses_none_and_says_so(made):
    found, status = find(made, "off", ("base",))
    assert found is None and status.why == "switched off (X3D_EXPAND_KERNELS=off)"


@pytest.mark.parametrize(("choice", "message"), [
    ("fast", "X3D_EXPAND_KERNELS: 'fast' is no choice of CPU kernels\n  set it to off, base, avx2, avx512, or unset"),
    ("avx512", "X3D_EXPAND_KERNELS: this processor does not run `avx512`\n  set it to off, avx2, base, or unset"),
    ("avx2", "X3D_EXPAND_KERNELS: `avx2`: not built"),
])
def test_a_choice_that_cannot_be_met_is_an_error(tmp_path, choice, message):
    with pytest.raises(UsageError) as caught:
        find(write_sources(tmp_path / "kernels"), choice, ("avx2", "base"))
    assert str(caught.value).startswith(message)


def test_the_environment_chooses_at_any_time(monkeypatch):
    monkeypatch.setenv(library.VARIABLE, " Off ")
    assert library.load() is None and library.status().why.startswith("switched off")
    monkeypatch.setenv(library.VARIABLE, "sse")
    with pytest.raises(UsageError, match="no choice"):
        library.load()


def test_a_training_on_the_cpu_says_once_that_it_could_be_faster(monkeypatch):
    monkeypatch.setenv(library.VARIABLE, "off")
    assert Runtime(torch.device("cuda", 0), 1, "fp32").remarks(1) == []
    (line,) = Runtime(torch.device("cpu"), 1, "fp32").remarks(1)
    assert line.startswith("compiled CPU kernels: switched off (X3D_EXPAND_KERNELS=off); PyTorch's own operators train")


@needs_compiler
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="torch has GNU's OpenMP on Linux")
def test_threads_are_those_of_torch(made):
    kernels = Library(made / builds.file_name("base"))
    mapped = [line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "libgomp" in line]
    assert kernels.shares_threads and Path(torch.__file__).parent in Path(mapped[0]).parents


@needs_compiler
def test_where_there_is_a_compiler_the_best_build_is_in_use_and_answers_on_several_threads(monkeypatch):
    monkeypatch.delenv(library.VARIABLE, raising=False)
    kernels = library.load()
    assert library.status().why is None, library.status().fix
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            out = torch.zeros(1000)
            kernels.call("probe", torch.float32, out, 1000)
            assert torch.equal(out, torch.arange(1000.0))
    finally:
        torch.set_num_threads(before)


def test_a_folder_that_cannot_be_written_is_said(monkeypatch, capsys):
    def refuse(names):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(builds, "build_all", refuse)
    assert builds.main([]) == 1
    assert capsys.readouterr().err == f"{builds.HERE}: cannot be written to: Permission denied\n"


@needs_compiler
def test_the_program_builds_what_it_is_asked_for(copied):
    def run(*names):
        done = subprocess.run([sys.executable, copied / "builds.py", *names], capture_output=True, text=True,
                              check=False)
        return done.returncode, done.stdout, done.stderr

    (copied / builds.file_name("base")).unlink()
    assert run("base") == (0, "base: built\n", "") and find(copied, "", ("base",))[0] is not None
    code, out, err = run("mmx")
    assert (code, out) == (2, "") and err.startswith("no such build here: mmx; there are ")
    (copied / builds.SOURCE).write_text("int broken( {\n")
    code, out, err = run()
    assert code == 1 and out.count("error") == len(builds.BUILDS) == len(out.splitlines()) and err == ""
